"""How far one model's scores are noise: intervals by resampling whole groups of rows.

Slices of one patient, or near duplicates, are not independent evidence, so whole groups are drawn
with replacement (Field & Welsh 2007) and percentiles taken (Efron & Tibshirani 1993). A resample
is a weight for every row, and all resamples are scored at once.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from btray.core.bootstrap import drawn_groups

RESAMPLES: Final = 1000
"""Resamples an interval is taken from."""
CONFIDENCE: Final = 0.95
"""Probability that an interval covers."""
UNDEFINED: Final = 0.05
"""Largest share of resamples in which a score may be undefined; above it there is no interval."""
GRID: Final = tuple(point / 100 for point in range(101))
"""False positive rates, or recalls, at which curves have a band."""
_CELLS: Final = 1_000_000
"""Rows times resamples computed at once, to bound memory."""

Interval = list[float]
"""Lower and upper end."""
Bands = dict[str, dict[str, list[float]]]
"""By class: `grid`, `low` and `high` [101]."""


def score_intervals(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    class_names: Sequence[str],
    groups: NDArray[Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """Return the 95 % interval of every score, by the paths of `metrics.flat_scores`.

    A resample in which a score is undefined (see `resampled_scores`) is left out; the interval
    is None when that is more than 5 % of them, and with fewer than two groups all are None.

    Args:
        labels: True classes [n], 0..classes-1.
        probabilities: [n, classes].
        class_names: Names of the classes.
        groups: Group of every row [n]: patient or cluster of near duplicates.
        resamples: Number of resamples.
        seed: Of the resamples.

    """
    scored = [
        resampled_scores(labels, probabilities, class_names, weights)
        for weights in _drawn_rows(groups, resamples, seed)
    ]
    if not scored:
        nothing = resampled_scores(labels, probabilities, class_names, np.ones((1, len(labels))))
        return dict.fromkeys(nothing)
    return {path: _interval(np.concatenate([part[path] for part in scored])) for path in scored[0]}


def curve_bands(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    class_names: Sequence[str],
    groups: NDArray[Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Bands]:
    """Return pointwise 95 % bands of each class's curves, `roc` and `precision_recall`.

    Of the ROC it is the sensitivity at each false positive rate, linear between its points; of
    the other the precision that average precision counts at each recall, a step. Classes whose
    curve is undefined in more than 5 % of the resamples are left out; with fewer than two
    groups all are. The arguments are those of `score_intervals`.
    """
    bands: dict[str, Bands] = {"roc": {}, "precision_recall": {}}
    for k, name in enumerate(class_names):
        roc, precision_recall = [np.empty((0, len(GRID)))], [np.empty((0, len(GRID)))]
        for weights in _drawn_rows(groups, resamples, seed):
            hits, alarms = _cumulative(labels == k, probabilities[:, k], weights)
            roc.append(_sensitivities(hits, alarms))
            precision_recall.append(_precisions(hits, alarms))
        for kind, drawn in (("roc", roc), ("precision_recall", precision_recall)):
            ends = _percentiles(np.concatenate(drawn))
            if ends is not None:
                low, high = ends.tolist()
                bands[kind][name] = {"grid": list(GRID), "low": low, "high": high}
    return bands


def ratio_intervals(
    parts: NDArray[np.bool_],
    wholes: NDArray[np.bool_],
    groups: NDArray[Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval | None]:
    """Return the 95 % intervals of ratios of counts, such as sensitivity.

    Args:
        parts: Whether a row counts in each ratio's numerator [n, ratios].
        wholes: Whether it counts in the denominator [n, ratios].
        groups: Group of every row [n].
        resamples: Number of resamples.
        seed: Of the resamples.

    Returns:
        One interval a ratio; None where it is 0/0 in more than 5 % of the resamples, or with
        fewer than two groups.

    """
    ratios = [
        _ratio(weights @ parts, weights @ wholes)
        for weights in _drawn_rows(groups, resamples, seed)
    ]
    if not ratios:
        return [None] * parts.shape[1]
    return [_interval(column) for column in np.concatenate(ratios).T]


def resampled_scores(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    class_names: Sequence[str],
    weights: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Return every score of `evaluate_probabilities` for each resample, by its path.

    A score is NaN where it is undefined on the resampled rows. So are the ratios 0/0 that come
    of the draw alone, and the F1 and the macro scores with them: recall, when the resample lacks
    the rows of a class that the data has, and precision, when it lacks all rows predicted so.
    `evaluate_probabilities` would count them 0, which would say nothing of the model.

    Args:
        labels: True classes [n], 0..classes-1.
        probabilities: [n, classes].
        class_names: Names of the classes.
        weights: How often each row stands in each resample [resamples, n]; whole numbers,
            in every resample some above 0.

    Returns:
        Arrays [resamples].

    """
    classes = len(class_names)
    cells = np.eye(classes**2)[labels * classes + probabilities.argmax(axis=1)]
    overall, each = _count_scores(
        (weights @ cells).reshape(-1, classes, classes), cells.sum(axis=0).reshape(classes, classes)
    )
    curves = [_cumulative(labels == k, scores, weights) for k, scores in enumerate(probabilities.T)]
    each["auroc"] = np.stack([_areas(*curve) for curve in curves], axis=1)
    each["average_precision"] = np.stack([_average_precisions(*curve) for curve in curves], axis=1)
    return {
        **overall,
        **{f"macro_{key}": values.mean(axis=1) for key, values in each.items()},
        **{
            f"per_class.{name}.{key}": values[:, k]
            for k, name in enumerate(class_names)
            for key, values in each.items()
        },
    }


def _drawn_rows(groups: NDArray[Any], resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield weights of the rows [portion, n]; nothing with fewer than two groups."""
    names, units = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return
    portion = max(1, _CELLS // len(units))
    for weights in drawn_groups(len(names), resamples, seed, portion):
        yield weights[:, units]


def _interval(drawn: NDArray[np.float64]) -> Interval | None:
    ends = _percentiles(drawn)
    return None if ends is None else [float(end) for end in ends]


def _percentiles(drawn: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the ends [2, ...] of the interval of resampled values [resamples, ...]."""
    defined = drawn[~np.isnan(drawn).any(axis=tuple(range(1, drawn.ndim)))]
    if not len(defined) or len(defined) < (1 - UNDEFINED) * len(drawn):
        return None
    tail = (1 - CONFIDENCE) / 2
    return np.asarray(np.quantile(defined, (tail, 1 - tail), axis=0), dtype=np.float64)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide, with NaN for 0/0."""
    undefined = np.full(part.shape, np.nan)
    return np.asarray(np.divide(part, whole, out=undefined, where=whole > 0), dtype=np.float64)


def _count_scores(
    counts: NDArray[np.float64], data: NDArray[np.float64]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Score counts [resamples, true, predicted], drawn from those of the data [true, predicted].

    Returns scores [resamples] and scores of the classes [resamples, classes].
    """
    hits = np.diagonal(counts, axis1=1, axis2=2)
    rows, answers = counts.sum(axis=2), counts.sum(axis=1)
    total, right = rows.sum(axis=1), hits.sum(axis=1)
    others = total[:, None] - rows
    has_rows, has_answers = data.sum(axis=1) > 0, data.sum(axis=0) > 0
    recall = np.where(has_rows, _ratio(hits, rows), 0.0)
    each = {
        "precision": np.where(has_answers, _ratio(hits, answers), 0.0),
        "recall": recall,
        "f1": np.where(has_rows, _ratio(2 * hits, np.where(rows > 0, rows + answers, 0)), 0.0),
        "specificity": _ratio(others - answers + hits, others),
    }
    # Gorodkin 2004: the covariance of answers and classes, and of each with itself.
    chance = (rows * answers).sum(axis=1)
    covariance = right * total - chance
    of_rows, of_answers = total**2 - (rows**2).sum(axis=1), total**2 - (answers**2).sum(axis=1)
    mcc = np.where(of_answers > 0, _ratio(covariance, np.sqrt(of_rows * of_answers)), 0.0)
    overall = {
        "accuracy": right / total,
        "balanced_accuracy": recall[:, has_rows].mean(axis=1),
        "mcc": np.where(of_rows > 0, mcc, np.nan),
        "kappa": np.where(of_rows > 0, _ratio(covariance, total**2 - chance), np.nan),
    }
    return overall, each


def _cumulative(
    positive: NDArray[np.bool_], scores: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return true and false positives [resamples, 1 + thresholds], from none to all.

    Rows [n] of equal score [n] pass the threshold together.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    drawn = weights[:, order]

    def passed(counted: NDArray[np.bool_]) -> NDArray[np.float64]:
        sums = np.add.reduceat(drawn * counted[order], starts, axis=1).cumsum(axis=1)
        return np.pad(sums, ((0, 0), (1, 0)))

    return passed(positive), passed(~positive)


def _areas(hits: NDArray[np.float64], alarms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the AUROC [resamples]."""
    areas = np.asarray(np.trapezoid(hits, alarms, axis=1))
    return _ratio(areas, hits[:, -1] * alarms[:, -1])


def _average_precisions(
    hits: NDArray[np.float64], alarms: NDArray[np.float64]
) -> NDArray[np.float64]:
    gained = np.diff(hits, axis=1)
    precision = _ratio(hits, hits + alarms)[:, 1:]
    return _ratio(np.where(gained > 0, gained * precision, 0.0).sum(axis=1), hits[:, -1])


def _sensitivities(hits: NDArray[np.float64], alarms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ROC [resamples, grid]; at a false positive rate of several, the largest."""
    return np.stack(
        [
            np.interp(GRID, false / false[-1], true / true[-1])
            if false[-1] > 0 and true[-1] > 0
            else np.full(len(GRID), np.nan)
            for true, false in zip(hits, alarms, strict=True)
        ]
    )


def _precisions(hits: NDArray[np.float64], alarms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the precision [resamples, grid] where the recall first reaches the grid's.

    At 0 it is that of the first true positive.
    """
    wanted = np.maximum(GRID, np.finfo(np.float64).tiny)
    curves = np.full((len(hits), len(GRID)), np.nan)
    for curve, true, false in zip(curves, hits, alarms, strict=True):
        if true[-1] > 0:
            first = np.searchsorted(true / true[-1], wanted)
            curve[:] = true[first] / (true[first] + false[first])
    return curves
