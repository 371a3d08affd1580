"""Where a served bundle lies: in the package, in a folder, at a URI, or in the registry."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from btray.core.card import read_card
from btray.core.reference import reference_bundle
from btray.errors import UserError
from btray.serve.config import REFERENCE
from btray.serve.models import Source

REGISTERED: Final = "models:/"


def identify(uri: str, tracking: str | None = None) -> Source:
    """Find a bundle and read its card, not its weights.

    Args:
        uri: Folder, URI, `reference`, models:/NAME@ALIAS or models:/NAME/VERSION.
        tracking: The registry's MLflow store; None for what MLFLOW_TRACKING_URI names.

    Raises:
        UserError: no such bundle, or a damaged one.

    """
    place = _place(uri, tracking)
    card = read_card(place)
    return Source(place, card, card.version)


def _place(uri: str, tracking: str | None) -> str:
    if uri == REFERENCE:
        return reference_bundle()
    if uri.startswith(REGISTERED):
        return str(_registered(uri, tracking))
    return uri


def registered_version(uri: str, tracking: str | None) -> str:
    """Return which bundle stands behind a name in the registry now: its version."""
    from btray.registry.client import locate
    from btray.registry.models import BUNDLE, Registry, parse_reference

    registry = Registry(locate(tracking, "runs"))
    return registry.get(*parse_reference(uri)).tags[BUNDLE]


def _registered(uri: str, tracking: str | None) -> Path:
    """Copy a registered bundle to this machine, once a version."""
    from btray.registry.client import locate
    from btray.registry.models import BUNDLE, Registry, parse_reference

    registry = Registry(locate(tracking, "runs"))
    version = registry.get(*parse_reference(uri))
    kept = _cache() / version.tags[BUNDLE]
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with (
            registry.bundle_folder(version) as folder,
            tempfile.TemporaryDirectory(dir=kept.parent) as partial,
        ):
            copy = shutil.copytree(folder, Path(partial) / "bundle")
            try:
                copy.rename(kept)
            except OSError:
                if not kept.is_dir():  # unless another replica was faster
                    raise
    if read_card(str(kept)).version != version.tags[BUNDLE]:
        raise UserError(f"{uri}: the stored bundle is not the one registered; do not use it")
    return kept


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "btray" / "models"
