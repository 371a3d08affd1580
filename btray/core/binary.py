"""Tumour or no tumour: the clinical read-out of a classifier of tumours.

The threshold is chosen on validation and read out on test, never chosen there.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from btray.config import Section
from btray.core.intervals import RESAMPLES, ratio_intervals
from btray.core.metrics import auroc, average_precision

NO_TUMOUR: Final = "notumor"
"""The class that is not a tumour."""
SPECIFICITY: Final = 0.95
"""Least share of validation rows without a tumour that are to be called so."""
SPECIFICITIES: Final = (0.90, 0.95, 0.99)
"""Specificities at which the ROC of a read-out is read."""


class OperatingPoint(Section):
    """A threshold of the tumour score and what it does on the rows it was chosen on."""

    threshold: float
    """Scores at or above it are called a tumour."""
    target: float = Field(gt=0, le=1)
    """Specificity that was asked for."""
    specificity: float = Field(ge=0, le=1)
    """Share of the rows without a tumour that are called so."""
    sensitivity: float | None = Field(ge=0, le=1)
    """Share of the rows with a tumour that are called so; None without such rows."""
    rows: int = Field(ge=1)
    """Rows it was chosen on."""


def tumour_score(
    probabilities: NDArray[np.float64], class_names: Sequence[str]
) -> NDArray[np.float64] | None:
    """Return 1 - p(notumor) [n], 0..1, of probabilities [n, classes].

    None when there is no such class, or no other.
    """
    if NO_TUMOUR not in class_names or len(class_names) < 2:
        return None
    return 1 - probabilities[:, list(class_names).index(NO_TUMOUR)]


def has_tumour(labels: NDArray[np.int64], class_names: Sequence[str]) -> NDArray[np.bool_] | None:
    """Return whether each row's class [n] is a tumour; None as in `tumour_score`."""
    if NO_TUMOUR not in class_names or len(class_names) < 2:
        return None
    return np.asarray(labels != list(class_names).index(NO_TUMOUR))


def choose_threshold(
    tumour: NDArray[np.bool_], scores: NDArray[np.float64], specificity: float = SPECIFICITY
) -> OperatingPoint | None:
    """Return the smallest threshold with the specificity asked for, which is the most sensitive.

    It lies just above a score of a row without a tumour; when too many of those have the
    highest score of all, nothing reaches it.

    Args:
        tumour: Whether each row of validation has a tumour [n].
        scores: Tumour scores [n].
        specificity: Least specificity, above 0 and up to 1.

    Returns:
        None when every row has a tumour: there is no specificity.

    Raises:
        ValueError: a specificity outside its range.

    """
    if not 0 < specificity <= 1:
        raise ValueError(f"specificity {specificity}: must be above 0 and up to 1")
    healthy = np.sort(scores[~tumour])
    if not len(healthy):
        return None
    shares = np.arange(1, len(healthy) + 1) / len(healthy)
    last = healthy[np.searchsorted(shares, specificity)]
    threshold = math.nextafter(float(last), math.inf)
    return OperatingPoint(
        threshold=threshold,
        target=specificity,
        specificity=float((healthy < threshold).mean()),
        sensitivity=_share(int((scores[tumour] >= threshold).sum()), int(tumour.sum())),
        rows=len(scores),
    )


def read_out(
    tumour: NDArray[np.bool_],
    scores: NDArray[np.float64],
    threshold: float,
    groups: NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what a threshold chosen elsewhere does on test.

    Args:
        tumour: Whether each row has a tumour [n].
        scores: Tumour scores [n]; at or above the threshold is called a tumour.
        threshold: Of an operating point chosen on validation.
        groups: Group of every row [n]; each row its own when None.
        resamples: Number of resamples for the intervals.
        seed: Of the resamples.

    Returns:
        `threshold`, `rows`, `tp`, `fp`, `tn`, `fn`, `prevalence`, `sensitivity`, `specificity`,
        `ppv`, `npv`, `auroc`, `average_precision`; `intervals` {sensitivity, specificity, ppv,
        npv: [low, high]} at 95 %, over groups; `roc_sensitivity_at_specificity` {"0.90", "0.95",
        "0.99"}: the largest sensitivity with that specificity on the ROC of these very rows, a
        reading of the curve and no operating point. PPV and NPV hold at this prevalence only.
        None where undefined.

    """
    called = scores >= threshold
    parts = {
        "sensitivity": (called, tumour),
        "specificity": (~called, ~tumour),
        "ppv": (tumour, called),
        "npv": (~tumour, ~called),
    }
    wholes = np.stack([whole for _, whole in parts.values()], axis=1)
    both = np.stack([part & whole for part, whole in parts.values()], axis=1)
    intervals = ratio_intervals(
        both, wholes, np.arange(len(tumour)) if groups is None else groups, resamples, seed
    )
    curve = {wanted: choose_threshold(tumour, scores, wanted) for wanted in SPECIFICITIES}
    return {
        "threshold": threshold,
        "rows": len(tumour),
        "tp": int((tumour & called).sum()),
        "fp": int((~tumour & called).sum()),
        "tn": int((~tumour & ~called).sum()),
        "fn": int((tumour & ~called).sum()),
        "prevalence": _share(int(tumour.sum()), len(tumour)),
        **{
            name: _share(int(part), int(whole))
            for name, part, whole in zip(parts, both.sum(axis=0), wholes.sum(axis=0), strict=True)
        },
        "auroc": auroc(tumour, scores),
        "average_precision": average_precision(tumour, scores),
        "intervals": dict(zip(parts, intervals, strict=True)),
        "roc_sensitivity_at_specificity": {
            f"{wanted:.2f}": None if point is None else point.sensitivity
            for wanted, point in curve.items()
        },
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
