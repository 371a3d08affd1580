"""Opening a bundle where a command takes one: a folder, a URI or a registered model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from btray.cli.runs import STORAGE

if TYPE_CHECKING:
    from btray.core.answers import Engine
    from btray.core.bundle import Bundle

MODELS: Final = "models:/"


def open_bundle(uri: str) -> "Bundle":
    """Open a bundle; `models:/NAME@ALIAS` and `models:/NAME/VERSION` come from the registry.

    Raises:
        UserError: no such bundle or model, a damaged one, or no answer from the registry.

    """
    from btray.core.bundle import load_bundle

    with _place_of(uri) as place:
        return replace(load_bundle(place), uri=uri) if place != uri else load_bundle(uri)


def open_fast(uri: str, threads: int) -> "Engine":
    """Open a bundle as `open_bundle` does, or an ONNX bundle, only to answer, in float32.

    Without a GPU that goes without torch, but for the first time a bundle is opened.

    Raises:
        UserError: as `open_bundle`.

    """
    from btray.core.engine import open_engine

    with _place_of(uri) as place:
        engine = open_engine(place, threads=threads, precision="float32")
    engine.uri = uri if place != uri else engine.uri
    return engine


@contextmanager
def _place_of(uri: str) -> Iterator[str]:
    """Give the folder or URI of a bundle; of a registered one, a folder that is then removed."""
    if not uri.startswith(MODELS):
        yield uri
        return
    from btray.core.card import read_card
    from btray.errors import UserError
    from btray.registry.client import locate
    from btray.registry.models import BUNDLE, Registry, parse_reference

    name, alias, number = parse_reference(uri)
    registry = Registry(locate(None, STORAGE))
    version = registry.get(name, alias, number)
    with registry.bundle_folder(version) as folder:
        if read_card(str(folder)).version != version.tags.get(BUNDLE):
            raise UserError(f"{uri}: the stored bundle is not the one registered; do not use it")
        yield str(folder)
