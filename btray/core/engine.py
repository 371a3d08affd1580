"""Opening a bundle to answer images: on a GPU in torch, elsewhere in ONNX Runtime without torch."""

import ctypes
import os
import warnings
from pathlib import Path

from btray.core.answers import Engine
from btray.core.card import Card, find_card
from btray.core.onnx_bundle import OnnxBundle, OnnxEngine, is_onnx_bundle, load_onnx_bundle
from btray.core.onnx_recipe import recipe
from btray.errors import UserError


def open_engine(
    uri: str | Path,
    *,
    device: str | None = None,
    threads: int = 1,
    cache: Path | None = None,
    precision: str = "auto",
) -> Engine:
    """Open a bundle, the bundle of a run, or an ONNX bundle, in a folder or at a URI.

    On a CPU a bundle is exported to ONNX when it is first opened, which takes torch and some
    seconds; the export is kept, and opened without torch from then on. Networks that cannot be
    exported are computed by torch there too, with a warning.

    Args:
        uri: What to open.
        device: `cpu`, or a device of torch such as `cuda`; by default a GPU if there is one.
        threads: Threads that compute one batch on a CPU, 1 or more.
        cache: Folder of the exports; by default `default_cache()`.
        precision: In which torch computes on a GPU, see `Predictor`; a CPU takes float32.

    Raises:
        UserError: no bundle there, a damaged one, no such device, or no place for the export.

    """
    place, card = find_card(str(uri))
    if is_onnx_bundle(place):
        if device not in (None, "cpu"):
            raise UserError(f"{place}: an ONNX bundle is computed on a CPU, not on {device}")
        return OnnxEngine(load_onnx_bundle(place), place, threads)
    device = device or _default_device()
    if device != "cpu":
        return _in_torch(place, device, threads, precision)
    bundle = _exported(place, card, cache or default_cache())
    if bundle is None:
        return _in_torch(place, device, threads, "float32")
    return OnnxEngine(bundle, place, threads)


def default_cache() -> Path:
    """Return the folder of exports: XDG_CACHE_HOME or ~/.cache, and there `btray/onnx`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "btray" / "onnx"


def has_cuda() -> bool:
    """Say whether the NVIDIA driver has a GPU for this process; torch is not loaded for it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False  # so Ray keeps replicas off GPUs they did not ask for
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def _default_device() -> str:
    if not has_cuda():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _in_torch(uri: str, device: str, threads: int, precision: str) -> Engine:
    import torch

    from btray.core.bundle import load_bundle
    from btray.core.predictor import Predictor

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"{device}: torch finds no GPU here; take cpu")
    if device == "cpu":
        torch.set_num_threads(threads)
    return Predictor(load_bundle(uri), device, precision)


def _exported(uri: str, card: Card, cache: Path) -> OnnxBundle | None:
    """Return a bundle's export, made first unless it is kept; None if it cannot be made."""
    folder = cache / card.version
    kept = _kept(folder, card)
    if kept is not None:
        return kept
    from btray.core.bundle import load_bundle
    from btray.core.onnx_export import NotExportableError, writing

    try:
        with writing(load_bundle(uri), folder) as (partial, written):
            _publish(partial, folder, card)
    except NotExportableError as error:
        warnings.warn(f"{error}; torch answers instead", RuntimeWarning, stacklevel=3)
        return None
    return written


def _kept(folder: Path, card: Card) -> OnnxBundle | None:
    """Return the export in a folder if it is intact and what this code would make."""
    if not folder.is_dir():
        return None
    try:
        found = load_onnx_bundle(str(folder))
    except UserError:
        return None  # damaged or of another format: it is made again
    return found if (found.card, found.recipe) == (card, recipe()) else None


def _publish(partial: Path, folder: Path, card: Card) -> None:
    """Put an export in its place, unless another process has put the same there meanwhile."""
    if _kept(folder, card) is not None:
        return
    if folder.exists():
        folder.rename(partial.with_name("damaged"))  # removed with the folder both are in
    try:
        partial.rename(folder)
    except OSError:
        if _kept(folder, card) is None:
            raise
