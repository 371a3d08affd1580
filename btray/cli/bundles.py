"""Opening a bundle where a command takes one: a folder, a URI or a registered model."""

from dataclasses import replace
from typing import TYPE_CHECKING

from btray.cli.runs import STORAGE

if TYPE_CHECKING:
    from btray.core.bundle import Bundle

MODELS = "models:/"


def open_bundle(uri: str) -> "Bundle":
    """Open a bundle; `models:/NAME@ALIAS` and `models:/NAME/VERSION` come from the registry.

    Raises:
        UserError: no such bundle or model, a damaged one, or no answer from the registry.

    """
    from btray.core.bundle import load_bundle

    if not uri.startswith(MODELS):
        return load_bundle(uri)
    from btray.errors import UserError
    from btray.registry.client import locate
    from btray.registry.models import BUNDLE, Registry, parse_reference

    name, alias, number = parse_reference(uri)
    registry = Registry(locate(None, STORAGE))
    version = registry.get(name, alias, number)
    with registry.bundle_folder(version) as folder:
        bundle = load_bundle(str(folder))
    if bundle.version != version.tags.get(BUNDLE):
        raise UserError(f"{uri}: the stored bundle is not the one registered; do not use it")
    return replace(bundle, uri=uri)
