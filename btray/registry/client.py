"""Reaching an MLflow store: a server, or SQLite and a folder of this machine."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from btray.core import files
from btray.errors import UserError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASE: Final = "mlflow.db"
ARTIFACTS: Final = "mlartifacts"
SQLITE: Final = "sqlite:///"
VARIABLE: Final = "MLFLOW_TRACKING_URI"
"""MLflow's own environment variable; a setting or an option goes before it."""

_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing is told to anybody else
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # MLflow would go on asking a server that is gone for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class NotInstalled(UserError):  # noqa: N818 - it is a state, not a failure
    """MLflow is missing: no use to try again."""


def locate(given: str | None, storage: str) -> str:
    """Return the URI of the store a person means.

    Args:
        given: `http(s)://…`, `sqlite:///…` or a folder; None for what MLFLOW_TRACKING_URI
            names, or else the embedded store in `storage`.
        storage: Folder of runs.

    Raises:
        UserError: no store btray can use, or a URI with a password in it.

    """
    place = given or os.environ.get(VARIABLE) or storage
    if place.startswith(SQLITE):
        return place
    if "://" not in place:
        return f"{SQLITE}{files.absolute(place)}/{DATABASE}"
    try:
        parts = urlsplit(place)
        known, private = parts.scheme in ("http", "https"), "@" in parts.netloc
    except ValueError:
        known = private = False
    if private:
        raise UserError(
            "the tracking URI has a user or password in it, which would end up in files; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    if not known:
        raise UserError(
            f"{place}: no place for MLflow's database; set tracking.uri (or --tracking) to an "
            "MLflow server (http://…), sqlite:///FILE or a folder"
        )
    return place.rstrip("/")


def open_client(uri: str, create: bool = False) -> "MlflowClient":
    """Return a client of a store, which may be made if it is one of this machine.

    Raises:
        NotInstalled: there is no MLflow.
        UserError: no such database, a damaged or locked one, or no folder for it.

    """
    if uri.startswith(SQLITE):
        _check_database(Path(uri.removeprefix(SQLITE)), create)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise NotInstalled(
            f"MLflow is not installed ({error}); pip install 'mlflow-skinny>=3.1,<4' "
            "'sqlalchemy>=2,<3' alembic psutil"
        ) from None
    with answered(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_database(path: Path, create: bool) -> None:
    """Tell what is wrong with a database in one line: MLflow tries for an hour."""
    if not path.is_file():
        if not create:
            raise UserError(
                f"{path}: no tracked runs or models there; give --tracking the folder of runs or "
                "the URI of an MLflow server"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be made: {files.reason(error)}") from None
    try:
        with closing(sqlite3.connect(path, timeout=5)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise UserError(_trouble(str(path), str(error))) from None


@contextmanager
def answered(uri: str) -> Iterator[None]:
    """Turn whatever a store answers instead of the thing asked for into one line.

    Raises:
        UserError: the store cannot be reached, is locked, damaged or refuses.

    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise UserError(_trouble(uri, str(error))) from None
    except OSError as error:
        raise UserError(_trouble(uri, files.reason(error))) from None


def _trouble(where: str, text: str) -> str:
    """Return the one line for the person: what, where, what to do."""
    if "database is locked" in text:
        return f"{where}: locked by another program; try again when it is done"
    if "malformed" in text or "not a database" in text:
        return f"{where}: damaged; put back a copy, or move it away to begin anew"
    if "Max retries exceeded" in text or "refused" in text or "timed out" in text:
        return f"{where}: no MLflow server answers; start it, or mend the address"
    return f"{where}: MLflow refuses: {' '.join(text.split())[:300]}"


def experiment_id(client: "MlflowClient", uri: str, name: str, create: bool = False) -> str:
    """Return the id of an experiment, which may be made.

    Raises:
        UserError: there is none (the nearest names are told), it was deleted, or no answer.

    """
    with answered(uri):
        found = client.get_experiment_by_name(name)
        if found is None and create:
            return _create_experiment(client, uri, name)
        if found is None:
            known = [experiment.name for experiment in client.search_experiments()]
            raise UserError(f"{uri}: no experiment {name!r}; {nearest(name, known)}")
    if found.lifecycle_stage != "active":
        raise UserError(f"{uri}: the experiment {name!r} was deleted; restore it or take another")
    return str(found.experiment_id)


def _create_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith(SQLITE):
        location = (Path(uri.removeprefix(SQLITE)).parent / ARTIFACTS).absolute().as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another run was faster
        if found is None:
            raise
        return str(found.experiment_id)


def nearest(name: str, known: list[str]) -> str:
    """Say what somebody may have meant: the names most like theirs, or all there are."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"nearest: {', '.join(close)}"
    return f"there are: {', '.join(sorted(known)[:10])}" if known else "there is none yet"
