"""What turns logits into probabilities, prediction sets and a score of strangeness.

All of it is fitted on the validation split and travels in the bundle.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import betaincinv

from btray.config import Section

COVERAGE: Final = 0.95
"""Share of prediction sets that are to hold the true class."""
IN_DISTRIBUTION: Final = 0.99
"""Share of validation images whose score is not out of distribution."""
TARGET_ERROR: Final = 0.02
"""Share of the answers given that may be wrong; the others are abstained from."""
CONFIDENCE: Final = 0.95
"""Probability over validation splits with which the error of fresh answers is on target."""
_TEMPERATURES: Final = (0.05, 20.0)
_EXPONENTS: Final = (-0.1, 1.0)
"""Further below 0, surer logits would become less sure probabilities."""
_LEAST_ENTROPY: Final = 0.01
"""Normalised entropies below are taken for it: few rows tell what happens there."""
_PRIOR: Final = 10.0
"""Precision of the normal prior of the exponent, around 0: with few rows it stays there."""
_ROUNDING: Final = 1e-9
"""Error of sums of the weights."""


class Calibration(Section):
    """Constants fitted on the validation split."""

    temperature: float = Field(gt=0)
    """Divisor of the logits before softmax (Guo et al. 2017); see `entropy_exponent`."""
    entropy_exponent: float = 0.0
    """The divisor is `temperature` times the normalised entropy, 0..1, of the plain softmax to this
    power: one for all rows with 0 (Balanya et al. 2024, entropy-based temperature scaling)."""
    coverage: float = Field(gt=0, lt=1)
    """Nominal share of prediction sets that hold the true class."""
    set_threshold: float = Field(ge=0, le=1)
    """A class is in the prediction set when its probability reaches this (split conformal
    prediction, Sadinle et al. 2019)."""
    ood_threshold: float
    """Energy score above which an image is out of distribution (Liu et al. 2020)."""
    rows: int = Field(ge=1)
    """Validation rows it was fitted on."""
    groups: int | None = Field(default=None, ge=1)
    """Groups those rows are in: patients or near duplicates; null in older bundles."""
    target_error: float | None = Field(default=None, gt=0, lt=1)
    """Largest share of wrong answers among those given; null in older bundles."""
    abstain_threshold: float | None = Field(default=None, ge=0, le=1)
    """An answer is given when its probability reaches this; null in older bundles and, with a
    `target_error`, when no threshold was shown to reach it."""
    tumour_threshold: float | None = None
    """Scores 1 - p(notumor) at or above it are called a tumour; null in older bundles and where
    validation has no rows without a tumour."""
    specificity: float | None = Field(default=None, ge=0, le=1)
    """Share of the validation rows without a tumour that are below `tumour_threshold`."""


def fit_calibration(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
    class_names: Sequence[str] | None = None,
) -> Calibration:
    """Fit all constants to validation.

    Args:
        logits: [rows, classes].
        labels: True classes [rows], 0..classes-1.
        groups: Group of every row [rows], any whole numbers: rows of one group are of one
            patient or alike, and no independent evidence. Each row its own when None.
        class_names: In the order of the logits. Without them there is no tumour threshold.

    Raises:
        ValueError: arrays of different lengths.

    """
    units = np.arange(len(labels)) if groups is None else groups
    if not len(logits) == len(labels) == len(units):
        raise ValueError("logits, labels and groups must have one row each")
    values = logits.astype(np.float64)
    weights = group_weights(units)
    temperature, exponent = fit_scaling(values, labels)
    probabilities = softmax(values / _temperatures(values, temperature, exponent))
    own = probabilities[np.arange(len(labels)), labels]
    right = probabilities.argmax(axis=1) == labels
    return Calibration(
        temperature=temperature,
        entropy_exponent=exponent,
        coverage=COVERAGE,
        set_threshold=conformal_threshold(own, COVERAGE, weights),
        ood_threshold=float(np.quantile(energy(values), IN_DISTRIBUTION, method="higher")),
        rows=len(labels),
        groups=len(np.unique(units)),
        target_error=TARGET_ERROR,
        abstain_threshold=selective_threshold(
            probabilities.max(axis=1), right, TARGET_ERROR, weights
        ),
        **_tumour_point(labels, probabilities, class_names or ()),
    )


def group_weights(groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return weights of the rows [rows] that add up to 1 in every group [rows]."""
    _, units, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray(1 / sizes[units], dtype=np.float64)


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the temperature in 0.05..20 of least negative log likelihood."""
    from scipy.optimize import minimize_scalar  # not for those who only predict

    def loss(log_temperature: float) -> float:
        return _nll(logits / np.exp(log_temperature), labels)

    best = minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURES)), method="bounded")
    return float(np.exp(best.x))


def fit_scaling(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return the temperature and the exponent of the entropy of least negative log likelihood.

    One temperature for all cannot mend a network that was taught with soft labels: its sure
    answers are too modest and its unsure ones too bold. Starts from `fit_temperature`, and with
    few rows hardly leaves it.
    """
    from scipy.optimize import minimize  # not for those who only predict

    def loss(both: NDArray[np.float64]) -> float:
        log_temperature, exponent = both.tolist()
        temperatures = _temperatures(logits, np.exp(log_temperature), exponent)
        penalty = _PRIOR * exponent**2 / (2 * len(labels))
        return _nll(logits / temperatures, labels) + float(penalty)

    start = np.log(fit_temperature(logits, labels)), 0.0
    best = minimize(loss, start, bounds=(np.log(_TEMPERATURES), _EXPONENTS), method="L-BFGS-B")
    return float(np.exp(best.x[0])), float(best.x[1])


def _temperatures(
    logits: NDArray[np.float64], temperature: float, exponent: float
) -> NDArray[np.float64]:
    """Return every row's temperature [rows, 1]."""
    logs = log_softmax(logits)
    entropy = -(np.exp(logs) * logs).sum(axis=1, keepdims=True) / np.log(logits.shape[1])
    return np.asarray(temperature * np.maximum(entropy, _LEAST_ENTROPY) ** exponent)


def _nll(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def conformal_threshold(
    own: NDArray[np.float64], coverage: float, weights: NDArray[np.float64] | None = None
) -> float:
    """Return the probability that a fresh row's true class reaches with the coverage asked.

    With the weights of groups the promise is for a row of a fresh group, whatever the sizes and
    however alike the rows within (hierarchical conformal prediction, Lee, Barber & Willett
    2023; nearly the pooled CDF of Dunn, Wasserman & Ramdas 2023): the fresh group counts as one
    more, whose row lies below. With too few groups for the coverage the threshold is 0: every
    class is in every set.

    Args:
        own: Probability of the true class [rows].
        coverage: Share of fresh rows, 0..1.
        weights: Of the rows, adding up to 1 in every group; each row its own group when None.

    """
    weights = np.ones(len(own)) if weights is None else weights
    order = np.argsort(own)
    below = np.cumsum(weights[order]) - weights[order]
    allowed = (weights.sum() + 1) * (1 - coverage) - 1
    (reached,) = np.nonzero(below <= allowed + _ROUNDING)
    return float(own[order[reached[-1]]]) if len(reached) else 0.0


def selective_threshold(
    confidence: NDArray[np.float64],
    right: NDArray[np.bool_],
    target_error: float,
    weights: NDArray[np.float64] | None = None,
) -> float | None:
    """Return the least confidence of answers of which no more than `target_error` are wrong.

    It is searched by halving, and each threshold tried is accepted by the upper bound on the
    error of fresh answers (SGR, Geifman & El-Yaniv 2017; Clopper & Pearson 1934), shared out
    over the tries. Groups count once, so that there are fractions of errors, for which the
    bound interpolates. None when there is no such threshold, as there is none with too few rows.

    Args:
        confidence: Probability of the answer [rows].
        right: Whether it is the true class [rows].
        target_error: Share of wrong answers among those given, 0..1.
        weights: Of the rows, adding up to 1 in every group; each row its own group when None.

    """
    weights = np.ones(len(confidence)) if weights is None else weights
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    last = np.append(np.diff(sorted_confidence) < 0, True)  # rows of one confidence go together
    answered = np.cumsum(weights[order])[last]
    wrong = np.cumsum((weights * ~right)[order])[last]
    tail = (1 - CONFIDENCE) / np.ceil(np.log2(len(answered) + 1))
    # Below that many answers, none of them wrong, the bound is above the target anyway.
    low = int(np.searchsorted(answered, np.log(tail) / np.log1p(-target_error)))
    high, found = len(answered) - 1, None
    while low <= high:
        middle = (low + high) // 2
        bound = betaincinv(wrong[middle] + 1, answered[middle] - wrong[middle], 1 - tail)
        if bound <= target_error:
            low, found = middle + 1, float(sorted_confidence[last][middle])
        else:
            high = middle - 1
    return found


def _tumour_point(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], class_names: Sequence[str]
) -> dict[str, Any]:
    from btray.core import binary  # scikit-learn: not for those who only predict

    scores = binary.tumour_score(probabilities, class_names)
    tumour = binary.has_tumour(labels, class_names)
    if scores is None or tumour is None:
        return {}
    point = binary.choose_threshold(tumour, scores)
    if point is None:
        return {}
    return {"tumour_threshold": point.threshold, "specificity": point.specificity}


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the softmax of every row; a fifth of scipy's time for one row."""
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of every row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def energy(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the energy [rows] of logits [rows, classes]: higher is stranger."""
    return -np.asarray(np.logaddexp.reduce(logits, axis=1), dtype=np.float64)


def scaled(logits: NDArray[np.floating], calibration: Calibration) -> NDArray[np.float64]:
    """Return logits [rows, classes] divided by the temperature of their row."""
    values = logits.astype(np.float64)
    exponent = calibration.entropy_exponent
    return values / _temperatures(values, calibration.temperature, exponent)


def calibrated(logits: NDArray[np.floating], calibration: Calibration) -> NDArray[np.float64]:
    """Return probabilities [rows, classes] that add up to 1."""
    return softmax(scaled(logits, calibration))
