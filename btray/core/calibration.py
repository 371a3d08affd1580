"""What turns logits into probabilities, prediction sets and a score of strangeness.

All of it is fitted on the validation split and travels in the bundle.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from btray.config import Section

COVERAGE: Final = 0.95
"""Share of prediction sets that are to hold the true class."""
IN_DISTRIBUTION: Final = 0.99
"""Share of validation images whose score is not out of distribution."""


class Calibration(Section):
    """Constants fitted on the validation split."""

    temperature: float = Field(gt=0)
    """Divisor of the logits before softmax (Guo et al. 2017)."""
    coverage: float = Field(gt=0, lt=1)
    """Nominal share of prediction sets that hold the true class."""
    set_threshold: float = Field(ge=0, le=1)
    """A class is in the prediction set when its probability reaches this (split conformal
    prediction, Sadinle et al. 2019)."""
    ood_threshold: float
    """Energy score above which an image is out of distribution (Liu et al. 2020)."""
    rows: int = Field(ge=1)
    """Validation rows it was fitted on."""


def fit_calibration(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Calibration:
    """Fit all constants to validation logits [rows, classes] and labels [rows]."""
    values = logits.astype(np.float64)
    temperature = fit_temperature(values, labels)
    probabilities = softmax(values / temperature, axis=1)
    own = probabilities[np.arange(len(labels)), labels]
    return Calibration(
        temperature=temperature,
        coverage=COVERAGE,
        set_threshold=conformal_threshold(own, COVERAGE),
        ood_threshold=float(np.quantile(energy(values), IN_DISTRIBUTION, method="higher")),
        rows=len(labels),
    )


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the temperature in 0.05..20 of least negative log likelihood."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[rows, labels].mean())

    best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(best.x))


def conformal_threshold(own: NDArray[np.float64], coverage: float) -> float:
    """Return the probability that the true class [rows] reaches with the coverage asked.

    With too few rows for the coverage the threshold is 0: every class is in every set.
    """
    rank = int(np.floor((len(own) + 1) * (1 - coverage)))
    return float(np.sort(own)[rank - 1]) if rank >= 1 else 0.0


def energy(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the energy [rows] of logits [rows, classes]: higher is stranger."""
    return -np.asarray(logsumexp(logits, axis=1), dtype=np.float64)


def calibrated(logits: NDArray[np.floating], calibration: Calibration) -> NDArray[np.float64]:
    """Return probabilities [rows, classes] that add up to 1."""
    scaled = logits.astype(np.float64) / calibration.temperature
    return np.asarray(softmax(scaled, axis=1), dtype=np.float64)
