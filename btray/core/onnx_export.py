"""From a bundle to an ONNX bundle: one graph from decoded squares to logits and features."""

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from btray.core.bundle import Bundle
from btray.core.card import fields_of, write_fields
from btray.core.features import feature_count
from btray.core.layout import CARD, DETECTOR, GRAPH, MANIFEST
from btray.core.onnx_bundle import (
    FEATURES,
    LOGITS,
    SQUARES,
    Manifest,
    OnnxBundle,
    OnnxEngine,
    load_onnx_bundle,
)
from btray.core.onnx_recipe import recipe
from btray.core.predictor import Predictor, network_outputs
from btray.errors import UserError

OPSET: Final = 18
PROBABILITY_ERROR: Final = 1e-4
"""Largest difference of a probability to torch's that is let pass."""
STRANGENESS_ERROR: Final = 1e-3
"""Largest relative difference of strangeness."""
_MOST_BYTES: Final = 2**31 - 2**20
"""A protobuf message, which the graph with its weights is, holds no more."""


class NotExportableError(UserError):
    """A network that cannot be an ONNX graph; torch can still compute it."""


def export_onnx(bundle: Bundle, directory: Path) -> OnnxBundle:
    """Write a bundle as an ONNX bundle into a new folder, all of it or nothing; read it back.

    The graph is held equal to torch on a few squares before it is written.

    Raises:
        NotExportableError: a network with operations ONNX does not have, too large, or whose
            graph does not answer as the network does.
        UserError: the folder is in use or cannot be written.

    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: already there; give another folder")
    with writing(bundle, directory) as (partial, written):
        partial.rename(directory)
    return written


@contextmanager
def writing(bundle: Bundle, directory: Path) -> Iterator[tuple[Path, OnnxBundle]]:
    """Write an ONNX bundle beside a folder, to be renamed to it; removed afterwards if it is not.

    Raises:
        NotExportableError: as `export_onnx`.
        UserError: it cannot be written.

    """
    graph = _verified(bundle)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror}") from None
    try:
        partial = holder / "new"
        _write(bundle, graph, partial)
        yield partial, load_onnx_bundle(str(partial))
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _write(bundle: Bundle, graph: bytes, folder: Path) -> None:
    folder.mkdir()
    contents = {GRAPH: graph}
    if bundle.detector is not None:
        contents[DETECTOR] = save(bundle.detector.tensors())
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    write_fields(fields_of(bundle.card), folder / CARD)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = Manifest(recipe=recipe(), card_sha256=bundle.card.card_sha256, sha256=hashes)
    text = manifest.model_dump_json(indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _verified(bundle: Bundle) -> bytes:
    """Return the graph of a bundle that answers as torch does."""
    predictor = Predictor(bundle, "cpu")
    graph = _graph(predictor)
    engine = OnnxEngine(OnnxBundle(bundle.card, bundle.detector, graph, ""), bundle.uri)
    size = bundle.card.image.size
    squares = np.random.default_rng(0).integers(0, 256, (3, size, size), dtype=np.uint8)
    squares[0] //= 4  # a dark image among them
    # One alone and several: a graph that was traced may hold on to the batch it was traced with.
    differences = [_difference(predictor, engine, part) for part in (squares[:1], squares)]
    probability, strangeness = map(max, zip(*differences, strict=True))
    if not (probability <= PROBABILITY_ERROR and strangeness <= STRANGENESS_ERROR):
        raise NotExportableError(
            f"{bundle.uri}: the ONNX graph does not answer as the network does: probabilities "
            f"differ by {probability:.2g}, strangeness by {strangeness:.2g} of itself"
        )
    return graph


def _difference(
    predictor: Predictor,
    engine: OnnxEngine,
    squares: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> tuple[float, float]:
    """Return the largest difference of a probability, and of strangeness relative to torch's."""
    wanted, found = predictor.answers(squares), engine.answers(squares)
    probabilities = [np.array([list(a.probabilities.values()) for a in b]) for b in (wanted, found)]
    scores = [np.array([a.ood_score for a in answers]) for answers in (wanted, found)]
    relative = np.abs(scores[1] - scores[0]) / np.abs(scores[0]).clip(min=1e-3)
    return float(np.abs(probabilities[1] - probabilities[0]).max()), float(relative.max())


class _Whole(nn.Module):
    """All that `Predictor.compute` does to a batch, as one module."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network, self.card = predictor.network, predictor.card
        self.precision = predictor.precision

    def forward(self, squares: Tensor) -> tuple[Tensor, ...]:
        logits, features = network_outputs(self.network, squares, self.card, self.precision)
        return (logits,) if features is None else (logits, features)


class _DividedPooling(TorchFunctionMode):
    """Adaptive average pooling by matrices: ONNX has it only where the sides are multiples."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever torch's function returns
        if func is nn.functional.adaptive_avg_pool2d or func is torch._C._nn.adaptive_avg_pool2d:
            images, asked = args
            sides = [int(side) for side in images.shape[-2:]]
            pair = (asked, asked) if isinstance(asked, int) else asked
            wanted = [new or old for new, old in zip(pair, sides, strict=True)]  # None keeps one
            if any(old % new for old, new in zip(sides, wanted, strict=True)):
                down, across = map(averages, sides, wanted)
                return down @ images @ across.T
        return func(*args, **(kwargs or {}))


def averages(inputs: int, outputs: int) -> Tensor:
    """Return the matrix [outputs, inputs] of adaptive average pooling along one side."""
    matrix = torch.zeros(outputs, inputs)
    for row in range(outputs):
        first, end = row * inputs // outputs, -(-(row + 1) * inputs // outputs)
        matrix[row, first:end] = 1 / (end - first)
    return matrix


@contextmanager
def _without_prints() -> Iterator[None]:
    """Keep the exporter from printing the whole graph to stdout, as it does when it fails.

    Rows of answers may go there; and its switch for that has no effect.
    """
    printing = torch._C._jit_onnx_log
    setattr(torch._C, "_jit_onnx_log", lambda *_: None)  # noqa: B010 - it has no type to assign to
    try:
        yield
    finally:
        setattr(torch._C, "_jit_onnx_log", printing)  # noqa: B010


def _graph(predictor: Predictor) -> bytes:
    module, size = _Whole(predictor).eval(), predictor.card.image.size
    weights = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if weights > _MOST_BYTES:
        raise NotExportableError(f"{predictor.uri}: more than 2 GB of weights, too large for ONNX")
    squares = torch.zeros(2, size, size, dtype=torch.uint8)
    features = [] if feature_count(predictor.network) is None else [FEATURES]
    names = [SQUARES, LOGITS, *features]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH
        try:
            with warnings.catch_warnings(), _without_prints(), _DividedPooling():
                warnings.simplefilter("ignore")  # tracing warns of what `_verified` then looks at
                torch.onnx.export(
                    module,
                    (squares,),
                    path,
                    input_names=names[:1],
                    output_names=names[1:],
                    dynamic_axes={name: {0: "n"} for name in names},
                    opset_version=OPSET,
                    dynamo=False,  # by tracing: dynamo's way needs a package more
                )
        except (RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise NotExportableError(
                f"{predictor.uri}: no ONNX graph can be made: {reason}"
            ) from None
        return path.read_bytes()
