"""Data sets of Kaggle, downloaded through its own client."""

import importlib
import re
from pathlib import Path
from typing import Any

from btray.errors import UserError

_HANDLE = re.compile(r"kaggle:([\w.-]+/[\w.-]+(?:/versions/\d+)?)")


def download(source: str, destination: str) -> Path:
    """Download `kaggle:owner/dataset[/versions/N]` into a new or empty folder; return it.

    Raises:
        UserError: another form, kagglehub not installed, the folder in use, no such data
            set, no permission, or no connection.

    """
    found = _HANDLE.fullmatch(source)
    if found is None:
        raise UserError(f"{source}: write kaggle:owner/dataset")
    folder = Path(destination).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not free; choose a folder that does not exist yet")
    kagglehub = _client()
    try:
        kagglehub.dataset_download(found[1], output_dir=str(folder))
    except Exception as error:  # noqa: BLE001 - the client raises many types, of several packages
        raise UserError(f"{source}: {_reason(error)}") from None
    return folder


def _client() -> Any:  # noqa: ANN401 - a module without types
    try:
        return importlib.import_module("kagglehub")
    except ModuleNotFoundError:
        raise UserError(
            "downloads from Kaggle need kagglehub: pip install 'btray[kaggle]'"
        ) from None


def _reason(error: Exception) -> str:
    """Return a download's failure as one line with what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or type(error).__name__ == "UnauthenticatedError":
        return "Kaggle refuses; accept the data set's terms there, and log in with KAGGLE_API_TOKEN"
    if status == 404 or type(error).__name__ == "NotFoundError":
        return "Kaggle has no such data set"
    if isinstance(error, ConnectionError) or "Connection" in type(error).__name__:
        return "Kaggle cannot be reached; check the network"
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    return f"the download failed: {first}"
