"""What it is worth to leave the unsure answers out, and to give sets of classes in their stead."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from btray.core.calibration import Calibration, group_weights
from btray.core.intervals import ratio_intervals

POINTS: Final = 200
"""Most points a curve is thinned to."""


def selective(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    calibration: Calibration,
    groups: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Return what abstaining from the answers of least confidence does on n rows.

    Args:
        labels: True classes [n], 0..classes-1.
        probabilities: Calibrated [n, classes]; the confidence is the highest of a row.
        calibration: Of the bundle, with its threshold.
        groups: Group of every row [n]; each row its own when None.

    Returns:
        `rows`; `curve`, risk against coverage, up to 200 points from the most confident answers
        to all of them: `coverage`, the share of rows answered, `risk`, the share of wrong answers
        among those, and `threshold`, the least confidence answered (Geifman & El-Yaniv 2017);
        `aurc`, the mean over rows of the risk at the row's confidence, and `e_aurc`, how much
        that is above the best order of the same answers (Geifman, Uziel & El-Yaniv 2019), both
        None without rows; `target_error` and `abstain_threshold` of the bundle, and
        `operating_point` there: `answered`, `wrong`, `coverage` and `error`, and
        `coverage_interval` and `error_interval` [low, high] at 95 %, over groups. None where
        undefined, all of the point without a threshold or rows.

    """
    confidence = probabilities.max(axis=1)
    wrong = probabilities.argmax(axis=1) != labels
    units = np.arange(len(labels)) if groups is None else groups
    threshold = calibration.abstain_threshold
    point = None
    if threshold is not None and len(labels):
        point = _operating_point(confidence >= threshold, wrong, units)
    return {
        "rows": len(labels),
        **_risk_coverage(confidence, wrong),
        "target_error": calibration.target_error,
        "abstain_threshold": threshold,
        "operating_point": point,
    }


def conformal(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    calibration: Calibration,
    groups: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Return what the prediction sets of n rows hold.

    Args:
        labels: True classes [n], 0..classes-1.
        probabilities: Calibrated [n, classes]; the set is all classes that reach the threshold.
        calibration: Of the bundle.
        groups: Group of every row [n]; each row its own when None.

    Returns:
        `rows`; `nominal_coverage` as promised; `coverage`, the share of sets that hold the true
        class; `coverage_interval` [low, high] at 95 %, over groups; `group_coverage`, the mean of
        the groups' coverages, to which the promise is made; `coverage_per_class` [classes];
        `mean_set_size`; `set_sizes`, the number of sets of 0, 1, … classes [classes + 1];
        `empty_share` of sets without any class. None where undefined.

    """
    units = np.arange(len(labels)) if groups is None else groups
    members = probabilities >= calibration.set_threshold
    covered = members[np.arange(len(labels)), labels]
    sizes = members.sum(axis=1)
    every = np.ones((len(labels), 1), dtype=np.bool_)
    (interval,) = ratio_intervals(covered[:, None], every, units)
    return {
        "rows": len(labels),
        "nominal_coverage": calibration.coverage,
        "coverage": _mean(covered),
        "coverage_interval": interval,
        "group_coverage": _mean(covered, group_weights(units)),
        "coverage_per_class": [_mean(covered[labels == k]) for k in range(probabilities.shape[1])],
        "mean_set_size": _mean(sizes),
        "set_sizes": np.bincount(sizes, minlength=probabilities.shape[1] + 1).tolist(),
        "empty_share": _mean(sizes == 0),
    }


def _risk_coverage(confidence: NDArray[np.float64], wrong: NDArray[np.bool_]) -> dict[str, Any]:
    order, rows = np.argsort(-confidence, kind="stable"), len(wrong)
    ranked = confidence[order]
    # Rows of one confidence are answered together, or none of them is.
    answered = np.searchsorted(-ranked, -ranked, side="right")
    risk = np.cumsum(wrong[order])[answered - 1] / answered
    ends = np.unique(answered) - 1
    steps = np.linspace(0, len(ends) - 1, min(POINTS, len(ends)))
    kept = ends[steps.round().astype(np.int64)]
    curve = {
        "coverage": (answered[kept] / rows).tolist(),
        "risk": risk[kept].tolist(),
        "threshold": ranked[kept].tolist(),
    }
    if not rows:
        return {"curve": curve, "aurc": None, "e_aurc": None}
    area = float(risk.mean())
    return {"curve": curve, "aurc": area, "e_aurc": area - _least_aurc(int(wrong.sum()), rows)}


def _least_aurc(wrong: int, rows: int) -> float:
    """Return the AURC when every wrong answer is less confident than every right one."""
    answered = np.arange(1, rows + 1)
    return float((np.maximum(answered - (rows - wrong), 0) / answered).mean())


def _operating_point(
    answered: NDArray[np.bool_], wrong: NDArray[np.bool_], groups: NDArray[Any]
) -> dict[str, Any]:
    coverage, error = ratio_intervals(
        np.stack([answered, answered & wrong], axis=1),
        np.stack([np.ones_like(answered), answered], axis=1),
        groups,
    )
    return {
        "answered": int(answered.sum()),
        "wrong": int(wrong[answered].sum()),
        "coverage": _mean(answered),
        "coverage_interval": coverage,
        "error": _mean(wrong[answered]),
        "error_interval": error,
    }


def _mean(values: NDArray[Any], weights: NDArray[np.float64] | None = None) -> float | None:
    return float(np.average(values, weights=weights)) if len(values) else None
