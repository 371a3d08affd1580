"""A bundle as an ONNX graph, computed by ONNX Runtime on a CPU. No torch here.

An ONNX bundle is a folder with the graph, the very card of the bundle it was made of, the tensors
of its detector, and a manifest with the hashes of them all. `btray.core.onnx_export` writes it.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from btray.config import Section
from btray.core import files
from btray.core.answers import Engine
from btray.core.card import Card, read_card
from btray.core.layout import DETECTOR, GRAPH, MANIFEST
from btray.core.strange import Detector
from btray.errors import UserError

SQUARES: Final = "squares"
LOGITS: Final = "logits"
FEATURES: Final = "features"
_BEST_BATCH: Final = 2
"""Images: on a CPU larger batches take longer than as many small ones, for want of cache."""
_ERRORS: Final = 3
"""The severity from which ONNX Runtime prints."""


class Manifest(Section):
    """`onnx.json`: what belongs to an ONNX bundle."""

    onnx_format: Literal[1] = 1
    """Version of the folder's layout and of the graph's inputs and outputs."""
    recipe: str
    """Hash of the code that made the graph: another may make another graph of the same weights."""
    card_sha256: str
    """Hash of the card, as in the card."""
    sha256: dict[str, str]
    """SHA-256 of the other files by their names."""


@dataclass(frozen=True)
class OnnxBundle:
    """An ONNX bundle in memory."""

    card: Card
    detector: Detector | None
    graph: bytes
    """The ONNX model: uint8 squares [n, size, size] in, logits and features out."""
    recipe: str
    """See `Manifest`."""


class OnnxEngine(Engine):
    """An ONNX bundle in ONNX Runtime, on the CPU in float32."""

    def __init__(self, bundle: OnnxBundle, uri: str, threads: int = 1) -> None:
        """Load the graph.

        Args:
            bundle: What to compute.
            uri: Where it was opened, for messages.
            threads: Threads that compute one batch, 1 or more.

        Raises:
            UserError: a graph that ONNX Runtime cannot load.

        """
        import onnxruntime

        self.uri, self.card, self.detector = uri, bundle.card, bundle.detector
        self.runtime = f"onnxruntime {onnxruntime.__version__} CPU"
        self.best_batch = _BEST_BATCH
        self._session = _open(bundle.graph, uri, threads)
        self._names = [output.name for output in self._session.get_outputs()]

    def compute(
        self, squares: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return logits [n, classes] and features [n, features] of squares [n, size, size]."""
        values = self._session.run(self._names, {SQUARES: np.ascontiguousarray(squares)})
        found = dict(zip(self._names, values, strict=True))
        return found[LOGITS], found.get(FEATURES)


def _open(graph: bytes, uri: str, threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
    import onnxruntime

    if threads < 1:
        raise ValueError(f"{threads} threads: need one or more")
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS
    # Threads that spin for work take it from other replicas on the same cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - it raises types of its own, all of them `Exception`
        reason = " ".join(str(error).split())
        raise UserError(f"{uri}: ONNX Runtime cannot load {GRAPH}: {reason}") from None


def is_onnx_bundle(uri: str) -> bool:
    """Say whether a folder or URI is an ONNX bundle; raises UserError if that cannot be told."""
    return files.exists(files.join(uri, MANIFEST))


def load_onnx_bundle(uri: str) -> OnnxBundle:
    """Read an ONNX bundle from a local folder or a URI.

    Raises:
        UserError: it is not there, altered, damaged, or of a newer format.

    """
    manifest, card = _manifest(uri), read_card(uri)
    if manifest.card_sha256 != card.card_sha256:
        raise _damaged(uri, "the card is of another bundle")
    contents = {name: _checked(uri, name, sha256) for name, sha256 in manifest.sha256.items()}
    if GRAPH not in contents:
        raise _damaged(uri, f"no {GRAPH}")
    detector = _detector(uri, contents[DETECTOR]) if DETECTOR in contents else None
    return OnnxBundle(card, detector, contents[GRAPH], manifest.recipe)


def _manifest(uri: str) -> Manifest:
    try:
        return Manifest.model_validate_json(files.read(files.join(uri, MANIFEST)))
    except FileNotFoundError:
        raise _damaged(uri, f"no {MANIFEST}") from None
    except ValidationError as error:
        raise _damaged(uri, f"{MANIFEST}: {error.errors()[0]['msg']}") from None


def _checked(uri: str, name: str, sha256: str) -> bytes:
    if name not in (GRAPH, DETECTOR):  # a name is part of a path: no other file is opened
        raise _damaged(uri, f"{MANIFEST} names a file {name!r}")
    try:
        data = files.read(files.join(uri, name))
    except FileNotFoundError:
        raise _damaged(uri, f"no {name}") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _damaged(uri, f"{name} was altered since it was written")
    return data


def _detector(uri: str, data: bytes) -> Detector:
    try:
        return Detector.from_tensors(load(data))
    except (SafetensorError, ValueError) as error:
        raise _damaged(uri, f"{DETECTOR}: {error}") from None


def _damaged(uri: str, what: str) -> UserError:
    return UserError(f"{uri}: no intact ONNX bundle: {what}; export it again")
