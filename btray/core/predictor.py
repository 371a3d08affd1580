"""From encoded images to answers: the one way a bundle is applied."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from btray.core.bundle import Bundle
from btray.core.calibration import calibrated, energy
from btray.core.features import predict_with_features
from btray.core.images import ImageError
from btray.core.loop import Precision
from btray.core.prepare import prepare
from btray.core.tensors import normalise, to_unit


@dataclass(frozen=True)
class Prediction:
    """The answer for one image."""

    class_name: str
    """The most probable class."""
    probabilities: dict[str, float]
    """Calibrated probability of every class; they add up to 1."""
    prediction_set: tuple[str, ...]
    """Classes that together hold the true one with the bundle's nominal coverage."""
    abstain: bool
    """True when the set is not exactly one class, the image is out of distribution, or the
    highest probability is below the bundle's threshold for an answer."""
    out_of_distribution: bool
    """True when the score is above the bundle's threshold: not a slice the network knows."""
    ood_score: float
    """How strange the image is: higher is stranger; of the bundle's detector, or without one the
    energy of the logits."""


@dataclass(frozen=True)
class Outputs:
    """What the network says of n images."""

    logits: NDArray[np.float32]
    """[n, classes]."""
    features: NDArray[np.float32] | None
    """What the classifier was given [n, features]; None for a network without one classifier."""
    strangeness: NDArray[np.float64]
    """[n]; see `Prediction.ood_score`."""


class Predictor:
    """A bundle's network on one device, in float32."""

    def __init__(self, bundle: Bundle, device: str | torch.device | None = None) -> None:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        self.bundle, self.device = bundle, torch.device(device or default)
        self.network = bundle.network(self.device)
        self.precision = Precision.choose("float32", self.device)

    def prepare(self, data: bytes) -> NDArray[np.uint8]:
        """Decode and resize one image to [size, size]; raises ImageError."""
        return prepare(data, self.bundle.card.image)

    def logits(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits [batch, classes] of prepared images [batch, size, size]."""
        return self.outputs(squares).logits

    def outputs(self, squares: NDArray[np.uint8]) -> Outputs:
        """Return all the network says of prepared images [batch, size, size]."""
        images = to_unit(torch.from_numpy(squares).to(self.device))
        batch = normalise(images, self.bundle.card.image)
        views = self.bundle.card.model.views
        answers, found = predict_with_features(self.network, [batch], self.precision, views)
        logits = np.asarray(answers.numpy())
        if not np.isfinite(logits).all():
            raise RuntimeError(f"{self.bundle.uri}: the network's answer is not a number")
        features = None if found is None else np.asarray(found.numpy())
        detector = self.bundle.detector
        if detector is not None and features is not None:
            strangeness = detector.score(features)
        else:
            strangeness = energy(logits.astype(np.float64))
        return Outputs(logits, features, strangeness)

    def predict(self, images: Sequence[bytes]) -> list[Prediction | ImageError]:
        """Answer for each of some encoded images, or say why it cannot be used."""
        prepared = [self._try(data) for data in images]
        squares = [item for item in prepared if isinstance(item, np.ndarray)]
        answers = iter(self._answers(np.stack(squares)) if squares else [])
        return [item if isinstance(item, ImageError) else next(answers) for item in prepared]

    def _try(self, data: bytes) -> NDArray[np.uint8] | ImageError:
        try:
            return self.prepare(data)
        except ImageError as error:
            return error

    def _answers(self, squares: NDArray[np.uint8]) -> list[Prediction]:
        outputs = self.outputs(squares)
        probabilities = calibrated(outputs.logits, self.bundle.card.calibration)
        pairs = zip(probabilities, outputs.strangeness.tolist(), strict=True)
        return [self._answer(row, score) for row, score in pairs]

    def _answer(self, row: NDArray[np.float64], score: float) -> Prediction:
        card = self.bundle.card
        fitted = card.calibration
        members = tuple(
            name for name, p in zip(card.class_names, row, strict=True) if p >= fitted.set_threshold
        )
        strange = score > self.bundle.strange_above
        unsure = bool(row.max() < (fitted.abstain_threshold or 0))
        return Prediction(
            class_name=card.class_names[int(row.argmax())],
            probabilities=dict(zip(card.class_names, row.tolist(), strict=True)),
            prediction_set=members,
            abstain=strange or len(members) != 1 or unsure,
            out_of_distribution=strange,
            ood_score=score,
        )


def answer_row(prediction: Prediction | ImageError, bundle: Bundle) -> dict[str, object]:
    """Return the JSON row of an answer, the same from every door of btray."""
    if isinstance(prediction, ImageError):
        return {"error": {"code": prediction.code, "message": str(prediction)}}
    return {
        "class": prediction.class_name,
        "probabilities": prediction.probabilities,
        "prediction_set": list(prediction.prediction_set),
        "abstain": prediction.abstain,
        "out_of_distribution": prediction.out_of_distribution,
        "ood_score": prediction.ood_score,
        "model": {"name": bundle.card.name, "version": bundle.version},
    }
