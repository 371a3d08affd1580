"""What a bundle says of an image, whatever computes it. No torch here: serving goes without it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from btray.core.calibration import calibrated, energy
from btray.core.card import Card
from btray.core.images import ImageError
from btray.core.prepare import prepare
from btray.core.strange import Detector


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


class Engine(ABC):
    """A bundle's network in one runtime; its methods may be called from several threads."""

    uri: str
    """Where the bundle was opened."""
    card: Card
    detector: Detector | None
    """Tells strange images; without one the energy of the logits does."""
    runtime: str
    """What computes, such as `onnxruntime 1.32.0 CPU`."""
    best_batch: int
    """Most images worth computing together; more only make the first wait for the last."""

    @property
    def version(self) -> str:
        """Return a short name of the bundle's very weights and settings."""
        return self.card.version

    @property
    def strange_above(self) -> float:
        """Return the score of strangeness above which an image is out of distribution."""
        return strange_above(self.card, self.detector)

    @property
    def deciles(self) -> tuple[float, ...] | None:
        """Return the nine deciles of strangeness in validation, for `strange.drift`, if known."""
        if self.detector is None or self.detector.deciles is None:
            return None
        return tuple(self.detector.deciles.tolist())

    def prepare(self, data: bytes) -> NDArray[np.uint8]:
        """Decode and resize one image to [size, size]; raises ImageError."""
        return prepare(data, self.card.image)

    @abstractmethod
    def compute(
        self, squares: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return logits [n, classes] and features [n, features] of squares [n, size, size]."""

    def outputs(self, squares: NDArray[np.uint8]) -> Outputs:
        """Return all the network says of prepared images [n, size, size].

        Raises:
            RuntimeError: logits that are no numbers.

        """
        logits, features = self.compute(squares)
        if not np.isfinite(logits).all():
            raise RuntimeError(f"{self.uri}: the network's answer is not a number")
        if self.detector is not None and features is not None:
            strangeness = self.detector.score(features)
        else:
            strangeness = energy(logits.astype(np.float64))
        return Outputs(logits, features, strangeness)

    def predictions(self, outputs: Outputs) -> list[Prediction]:
        """Return the answers [n] to what the network says."""
        return predictions(outputs, self.card, self.strange_above)

    def answers(self, squares: NDArray[np.uint8]) -> list[Prediction]:
        """Return the answers [n] for prepared images [n, size, size]."""
        return self.predictions(self.outputs(squares))

    def predict(self, images: Sequence[bytes]) -> list[Prediction | ImageError]:
        """Answer for each of some encoded images, or say why it cannot be used."""
        prepared = [self._try(data) for data in images]
        squares = [item for item in prepared if isinstance(item, np.ndarray)]
        answers = iter(self.answers(np.stack(squares)) if squares else [])
        return [item if isinstance(item, ImageError) else next(answers) for item in prepared]

    def _try(self, data: bytes) -> NDArray[np.uint8] | ImageError:
        try:
            return self.prepare(data)
        except ImageError as error:
            return error


def strange_above(card: Card, detector: Detector | None) -> float:
    """Return the score of strangeness above which an image is out of distribution."""
    return card.calibration.ood_threshold if detector is None else detector.threshold


def predictions(outputs: Outputs, card: Card, strange_above: float) -> list[Prediction]:
    """Return the answers [n] to what a network says: calibrated, with sets and abstentions."""
    rows = calibrated(outputs.logits, card.calibration)
    pairs = zip(rows, outputs.strangeness.tolist(), strict=True)
    return [_prediction(row, score, card, score > strange_above) for row, score in pairs]


def _prediction(
    probabilities: NDArray[np.float64], score: float, card: Card, strange: bool
) -> Prediction:
    names, fitted = card.class_names, card.calibration
    pairs = zip(names, probabilities.tolist(), strict=True)
    members = tuple(name for name, p in pairs if p >= fitted.set_threshold)
    unsure = bool(probabilities.max() < (fitted.abstain_threshold or 0))
    return Prediction(
        class_name=names[int(probabilities.argmax())],
        probabilities=dict(zip(names, probabilities.tolist(), strict=True)),
        prediction_set=members,
        abstain=strange or len(members) != 1 or unsure,
        out_of_distribution=strange,
        ood_score=score,
    )


def answer_row(prediction: Prediction | ImageError, name: str, version: str) -> dict[str, object]:
    """Return the JSON row of an answer of a model, the same from every door of btray."""
    if isinstance(prediction, ImageError):
        return {"error": {"code": prediction.code, "message": str(prediction)}}
    return {
        "class": prediction.class_name,
        "probabilities": prediction.probabilities,
        "prediction_set": list(prediction.prediction_set),
        "abstain": prediction.abstain,
        "out_of_distribution": prediction.out_of_distribution,
        "ood_score": prediction.ood_score,
        "model": {"name": name, "version": version},
    }
