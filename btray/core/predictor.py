"""From encoded images to answers: the one way a bundle is applied."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from btray.core.bundle import Bundle
from btray.core.calibration import calibrated, energy
from btray.core.images import ImageError
from btray.core.loop import Precision, predict_logits
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
    """True when the set is not exactly one class, or the image is out of distribution."""
    out_of_distribution: bool
    """True when the score is above the bundle's threshold."""
    ood_score: float
    """Energy of the logits: higher is stranger."""


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
        images = to_unit(torch.from_numpy(squares).to(self.device))
        batch = normalise(images, self.bundle.card.image)
        logits = np.asarray(predict_logits(self.network, [batch], self.precision).numpy())
        if not np.isfinite(logits).all():
            raise RuntimeError(f"{self.bundle.uri}: the network's answer is not a number")
        return logits

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
        logits = self.logits(squares)
        card = self.bundle.card
        probabilities = calibrated(logits, card.calibration)
        scores = energy(logits.astype(np.float64))
        pairs = zip(probabilities, scores.tolist(), strict=True)
        return [self._answer(row, score) for row, score in pairs]

    def _answer(self, row: NDArray[np.float64], score: float) -> Prediction:
        card = self.bundle.card
        members = tuple(
            name
            for name, p in zip(card.class_names, row, strict=True)
            if p >= card.calibration.set_threshold
        )
        strange = score > card.calibration.ood_threshold
        return Prediction(
            class_name=card.class_names[int(row.argmax())],
            probabilities=dict(zip(card.class_names, row.tolist(), strict=True)),
            prediction_set=members,
            abstain=strange or len(members) != 1,
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
