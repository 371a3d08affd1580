"""Grad-CAM at serving: torch is loaded when the first explanation is asked for."""

import functools
import threading
from typing import TYPE_CHECKING

from btray.errors import UserError

if TYPE_CHECKING:
    from btray.core.predictor import Predictor

_LOCK = threading.Lock()


def overlay(uri: str, version: str, class_name: str, image: bytes) -> bytes:
    """Return a PNG of the image with what speaks for a class laid over it.

    Raises:
        UserError: a network without feature maps, a bundle without one, or another bundle at
            the URI than the one of that version.

    """
    from btray.core import explain

    with _LOCK:
        predictor = _predictor(uri, version)
    return explain.overlay(explain.explain(predictor, image, class_name))


@functools.lru_cache(maxsize=2)
def _predictor(uri: str, version: str) -> "Predictor":
    import torch

    from btray.core.bundle import load_bundle
    from btray.core.predictor import Predictor

    torch.set_num_threads(1)  # the replica's other threads answer meanwhile
    bundle = load_bundle(uri)
    if bundle.version != version:
        raise UserError(f"{uri}: not the bundle {version} any more; deploy again")
    return Predictor(bundle, "cpu")
