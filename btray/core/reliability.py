"""Whether probabilities mean what they say: of answers given with 80 %, 80 % should be right."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import log_loss

from btray.core.calibration import Calibration, calibrated

BINS: Final = 15
"""Bins of the confidence, as in Guo et al. 2017."""


def reliability(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], bins: int = BINS
) -> dict[str, Any]:
    """Return how well the probabilities of n rows are calibrated.

    Confidence is the probability of the answer, the most probable class.

    Args:
        labels: True classes [n], 0..classes-1.
        probabilities: [n, classes].
        bins: Number of bins of the confidence.

    Returns:
        `rows`; `ece`, the mean over rows of the gap between confidence and accuracy of their
        bin, and `mce`, the largest gap, in bins of equal width (Naeini et al. 2015, Guo et al.
        2017); `adaptive_ece`, the same as `ece` in bins of as many rows each (Nguyen & O'Connor
        2015); `brier`, the squared error summed over the classes, 0..2 (Brier 1950); `nll`, the
        negative log likelihood in nats. Without rows these are None. `bins`, for the diagram:
        `low`, `high`, `count`, `confidence` and `accuracy` of every bin of equal width, `low`
        excluded, the last two None where it is empty.

    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    counts, means, shares = _binned(confidence, right, edges)
    filled = counts > 0
    return {
        "rows": len(labels),
        **_gaps(counts, means, shares),
        "adaptive_ece": _adaptive_ece(confidence, right, bins),
        "brier": _brier(labels, probabilities),
        "nll": _nll(labels, probabilities),
        "bins": [
            {
                "low": float(edges[k]),
                "high": float(edges[k + 1]),
                "count": int(counts[k]),
                "confidence": float(means[k]) if filled[k] else None,
                "accuracy": float(shares[k]) if filled[k] else None,
            }
            for k in range(bins)
        ],
    }


def before_and_after(
    labels: NDArray[np.int64], logits: NDArray[np.floating], calibration: Calibration
) -> dict[str, Any]:
    """Return the reliability of logits [n, classes] `before` and `after` temperature scaling.

    See `reliability`; before, the probabilities are the softmax of the logits as they are. And
    the bundle's `temperature` and `entropy_exponent`.
    """
    plain = np.asarray(softmax(logits.astype(np.float64), axis=1), dtype=np.float64)
    return {
        "temperature": calibration.temperature,
        "entropy_exponent": calibration.entropy_exponent,
        "before": reliability(labels, plain),
        "after": reliability(labels, calibrated(logits, calibration)),
    }


def _binned(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], edges: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return counts, mean confidence and accuracy [bins] between edges [bins + 1]; 0 for 0/0."""
    bins = len(edges) - 1
    place = np.searchsorted(edges[1:-1], confidence, side="left")
    counts = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, values, minlength=bins) for values in (confidence, right))
    means, shares = (total / np.maximum(counts, 1) for total in sums)
    return counts, means, shares


def _gaps(
    counts: NDArray[np.int64], means: NDArray[np.float64], shares: NDArray[np.float64]
) -> dict[str, float | None]:
    if not counts.any():
        return {"ece": None, "mce": None}
    gaps = np.abs(means - shares)
    return {"ece": float(np.average(gaps, weights=counts)), "mce": float(gaps.max())}


def _adaptive_ece(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int
) -> float | None:
    if not len(confidence):
        return None
    # By quantiles, so that rows of one confidence share a bin and their order does not matter.
    edges = np.quantile(confidence, np.linspace(0, 1, bins + 1))
    return _gaps(*_binned(confidence, right, edges))["ece"]


def _brier(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float | None:
    if not len(labels):
        return None
    wanted = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - wanted) ** 2).sum(axis=1).mean())


def _nll(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float | None:
    if not len(labels):
        return None
    return float(log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))
