"""What a model of ours takes and gives by the protocol, whichever way it is asked.

Inputs, of which a request has one: `image`, encoded files (PNG, JPEG, DICOM …), or `pixels`,
squares prepared by btray as 8-bit grey. The metadata lists both, and the protocol has no way to
say that one of them is enough.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from btray.serve.v2.errors import ProtocolError, invalid, shown
from btray.serve.v2.tensors import Images, Tensor, TensorInfo
from btray.version import __version__

MAX_IMAGES: Final = 64
"""Most images in a request, unless the server is told otherwise."""
PLATFORM: Final = "btray_bundle"
UNSUPPORTED: Final = {
    "shared_memory_region": "shared memory is not supported: send the data itself",
    "classification": "the classification extension is not supported: ask for `class`",
}
"""Parameters of tensors that would change what is meant, and what to do instead."""


class PreparedLike(Protocol):
    """How a model's images are prepared."""

    @property
    def size(self) -> int:
        """Return the side of a prepared square, in pixels."""


class CardLike(Protocol):
    """What the protocol needs to know of a bundle's card."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes in the order of the logits."""

    @property
    def image(self) -> PreparedLike:
        """Return how its images are prepared."""


class PredictionLike(Protocol):
    """What the protocol needs of `btray.core`'s Prediction."""

    @property
    def class_name(self) -> str:
        """Return the most probable class."""

    @property
    def probabilities(self) -> Mapping[str, float]:
        """Return the probability of every class."""

    @property
    def prediction_set(self) -> tuple[str, ...]:
        """Return the classes that may be true."""

    @property
    def abstain(self) -> bool:
        """Return whether the model gives no answer."""

    @property
    def out_of_distribution(self) -> bool:
        """Return whether it is not a slice the model knows."""

    @property
    def ood_score(self) -> float:
        """Return how strange the image is."""


@dataclass(frozen=True)
class InferRequest:
    """What a client asks."""

    id: str
    """Comes back in the response; may be empty."""
    images: Images
    """At least one."""
    outputs: tuple[str, ...]
    """The outputs asked for, in the order in which they are to come."""
    binary: frozenset[str] = frozenset()
    """Of these, the ones that HTTP is to send as raw data and not in JSON."""


@dataclass(frozen=True)
class InferResponse:
    """The answer to a request, for either transport."""

    model_name: str
    model_version: str
    id: str
    tensors: tuple[Tensor, ...]
    binary: frozenset[str] = frozenset()
    """See `InferRequest.binary`."""


@dataclass(frozen=True)
class _Answers:
    names: Sequence[str]
    predictions: Sequence[PredictionLike]
    logits: NDArray[np.float32]


def _per_class(answers: _Answers, pick: Callable[[PredictionLike, str], float]) -> NDArray[Any]:
    rows = [[pick(row, name) for name in answers.names] for row in answers.predictions]
    return np.array(rows).reshape(len(rows), len(answers.names))


_Make = Callable[[_Answers], NDArray[Any] | tuple[bytes, ...]]
_OUTPUTS: Final[dict[str, tuple[TensorInfo, _Make]]] = {
    info.name: (info, make)
    for info, make in (
        (
            TensorInfo("class", "BYTES", (-1,)),
            lambda a: tuple(row.class_name.encode() for row in a.predictions),
        ),
        (
            TensorInfo("probabilities", "FP32", (-1, -1)),
            lambda a: _per_class(a, lambda row, name: row.probabilities[name]).astype(np.float32),
        ),
        (
            TensorInfo("prediction_set", "BOOL", (-1, -1)),
            lambda a: _per_class(a, lambda row, name: name in row.prediction_set).astype(np.bool_),
        ),
        (
            TensorInfo("abstain", "BOOL", (-1,)),
            lambda a: np.array([row.abstain for row in a.predictions], np.bool_),
        ),
        (
            TensorInfo("out_of_distribution", "BOOL", (-1,)),
            lambda a: np.array([row.out_of_distribution for row in a.predictions], np.bool_),
        ),
        (
            TensorInfo("ood_score", "FP64", (-1,)),
            lambda a: np.array([row.ood_score for row in a.predictions], np.float64),
        ),
        (TensorInfo("logits", "FP32", (-1, -1)), lambda a: a.logits.astype(np.float32)),
    )
}
OUTPUTS: Final = tuple(_OUTPUTS)
"""Names of the outputs, in the order in which they come when none is named."""


def inputs_of(size: int) -> tuple[TensorInfo, ...]:
    """Return the inputs of a model whose prepared squares have a side of `size` pixels."""
    return (TensorInfo("image", "BYTES", (-1,)), TensorInfo("pixels", "UINT8", (-1, size, size)))


def outputs_of(classes: int) -> tuple[TensorInfo, ...]:
    """Return the outputs of a model of so many classes."""
    infos = (info for info, _ in _OUTPUTS.values())
    return tuple(
        TensorInfo(info.name, info.datatype, (*info.shape[:1], *(classes,) * len(info.shape[1:])))
        for info in infos
    )


def server_metadata() -> dict[str, Any]:
    """Return what the server says of itself, as HTTP has it."""
    return {"name": "btray", "version": __version__, "extensions": ["binary_tensor_data"]}


def model_metadata(name: str, versions: Sequence[str], card: CardLike) -> dict[str, Any]:
    """Return what a model takes and gives, as HTTP has it."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [info.described() for info in inputs_of(card.image.size)],
        "outputs": [info.described() for info in outputs_of(len(card.class_names))],
    }


def check_input(
    name: str, datatype: str, shape: Sequence[int], size: int, max_images: int
) -> TensorInfo:
    """Return a request's input with its sizes, when it is one of ours.

    Raises:
        ProtocolError: another name, datatype or shape, no image or too many.

    """
    known = {info.name: info for info in inputs_of(size)}
    if name not in known:
        raise invalid(f"input {shown(name)} is not known: send `image` or `pixels`")
    info = known[name]
    if datatype != info.datatype:
        raise invalid(f"input {name} is {info.datatype}, not {shown(datatype)}")
    if len(shape) != len(info.shape) or tuple(shape[1:]) != info.shape[1:] or shape[0] < 0:
        wanted = ", ".join(["n", *map(str, info.shape[1:])])
        raise invalid(f"input {name} has the shape [{wanted}], not {shown(str(list(shape[:8])))}")
    if shape[0] == 0:
        raise invalid(f"input {name} holds no image")
    if shape[0] > max_images:
        raise ProtocolError("too_large", f"the limit is {max_images} images in a request")
    return TensorInfo(info.name, info.datatype, tuple(shape))


def check_outputs(names: Sequence[str]) -> tuple[str, ...]:
    """Return the outputs asked for, or all when none is named; raises ProtocolError."""
    if len(names) > len(OUTPUTS):
        raise invalid(f"{len(names)} outputs are asked for; there are {len(OUTPUTS)}")
    for name in names:
        if name not in _OUTPUTS:
            raise invalid(f"output {shown(name)} is not known; there are {', '.join(OUTPUTS)}")
    if len(set(names)) != len(names):
        raise invalid("an output is asked for twice")
    return tuple(names) or OUTPUTS


def check_parameters(names: Mapping[str, object], where: str) -> None:
    """Refuse a tensor's parameters that would change what is meant; raises ProtocolError."""
    for name, why in UNSUPPORTED.items():
        if name in names:
            raise invalid(f"{where}: {why}")


def respond(
    request: InferRequest,
    model_name: str,
    model_version: str,
    class_names: Sequence[str],
    predictions: Sequence[PredictionLike],
    logits: NDArray[np.float32],
) -> InferResponse:
    """Return the response to a request.

    Args:
        request: What was asked.
        model_name: Of who answers.
        model_version: Of who answers.
        class_names: In the order of the logits.
        predictions: [n], one for each image of the request. An image without an answer has no
            place in the protocol: the whole request has to be refused.
        logits: [n, classes], float32.

    Raises:
        ValueError: sizes that do not fit one another.

    """
    rows, shape = len(request.images), (len(request.images), len(class_names))
    if len(predictions) != rows or logits.shape != shape:
        raise ValueError(
            f"{rows} images and {len(class_names)} classes, but {len(predictions)} predictions "
            f"and logits {logits.shape}"
        )
    answers = _Answers(class_names, predictions, logits)
    made = ((_OUTPUTS[name][0], _OUTPUTS[name][1](answers)) for name in request.outputs)
    tensors = tuple(Tensor(info.name, info.datatype, values) for info, values in made)
    return InferResponse(model_name, model_version, request.id, tensors, request.binary)
