"""Scores of a classifier, all from scikit-learn; undefined ones are None, never NaN."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    cohen_kappa_score,
    confusion_matrix,
    matthews_corrcoef,
    multilabel_confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
    roc_curve,
)

EXACT: Final = 2000
"""Curves of more points are thinned."""
TOLERANCE: Final = 0.001
"""Farthest a left-out point may be from the thinned curve, on axes of 0..1."""

_NOT_SCORES: Final = ("rows", "per_class", "confusion_matrix")

Scores = dict[str, Any]


def metrics_from_confusion(counts: NDArray[np.int64]) -> Scores:
    """Return the scores of counts [true, predicted] of all rows, wherever they were counted.

    `accuracy`, `balanced_accuracy` (mean recall of the classes that have rows), macro
    `precision`, `recall`, `f1` and `specificity`, `mcc` (Matthews; Gorodkin 2004) and `kappa`
    (Cohen 1960).

    A class without rows or without predictions scores 0 where its ratio is 0/0, so that
    a network that ignores a class is not rewarded for it. Rows all of one class leave `mcc`,
    `kappa` and `macro_specificity` None: there is nothing to tell apart.

    Raises:
        ValueError: no rows at all.

    """
    true, predicted = np.indices(counts.shape).reshape(2, -1)
    weights = counts.ravel()
    if not weights.any():
        raise ValueError("no rows to score")
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, sample_weight=weights, average="macro", zero_division=0
    )
    present = np.flatnonzero(counts.sum(axis=1))
    balanced = recall_score(true, predicted, labels=present, average="macro", sample_weight=weights)
    mcc = kappa = None
    if len(present) > 1:
        mcc = float(matthews_corrcoef(true, predicted, sample_weight=weights))
        kappa = float(cohen_kappa_score(true, predicted, sample_weight=weights))
    return {
        "accuracy": float(accuracy_score(true, predicted, sample_weight=weights)),
        "balanced_accuracy": float(balanced),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
        "macro_f1": float(f1),
        "macro_specificity": _mean(_specificities(counts)),
        "mcc": mcc,
        "kappa": kappa,
    }


def count_confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Return counts [true, predicted] of n rows."""
    counts = confusion_matrix(labels, predicted, labels=np.arange(classes))
    return np.asarray(counts, dtype=np.int64)


def evaluate_probabilities(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], class_names: Sequence[str]
) -> Scores:
    """Return every score of n labels [n] and probabilities [n, classes].

    Each class is scored against the rest. Undefined are the AUROC of a class that has no rows,
    or all of them, the average precision (Davis & Goadrich 2006, no interpolation) of one that
    has no rows, and the specificity of one that has all: these are None, and so is a macro
    score that would need them. The rest is as in `metrics_from_confusion`.

    Raises:
        ValueError: no rows.

    """
    if not len(labels):
        raise ValueError("no rows to score")
    classes = len(class_names)
    counts = count_confusion(labels, probabilities.argmax(axis=1), classes)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=np.arange(classes), zero_division=0
    )
    specificity = _specificities(counts)
    areas = _areas(labels, probabilities)
    precisions = [average_precision(labels == k, p) for k, p in enumerate(probabilities.T)]
    per_class = {
        name: {
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "specificity": specificity[k],
            "auroc": areas[k],
            "average_precision": precisions[k],
            "support": int(support[k]),
        }
        for k, name in enumerate(class_names)
    }
    return {
        "rows": len(labels),
        **metrics_from_confusion(counts),
        "macro_auroc": _mean(areas),
        "macro_average_precision": _mean(precisions),
        "per_class": per_class,
        "confusion_matrix": {"class_names": list(class_names), "counts": counts.tolist()},
    }


def flat_scores(scores: Scores) -> dict[str, float | None]:
    """Return the scores of `evaluate_probabilities` by path, without counts of rows.

    Paths are such as `accuracy`, `macro_f1` and `per_class.glioma.recall`.
    """
    flat = {key: scores[key] for key in scores if key not in _NOT_SCORES}
    for name, of_class in scores["per_class"].items():
        flat |= {f"per_class.{name}.{key}": of_class[key] for key in of_class if key != "support"}
    return flat


def roc_points(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], class_names: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Return each class's ROC against the rest: `false_positive_rate`, `true_positive_rate`.

    Classes without rows, or with all of them, have no curve and are left out. Points on a
    straight line between others are left out, and of more than EXACT the ones within TOLERANCE.
    """
    curves = {}
    for k, name in enumerate(class_names):
        positive = labels == k
        if positive.all() or not positive.any():
            continue
        false_positive, true_positive, _ = roc_curve(positive, probabilities[:, k])
        points = _thinned(np.column_stack([false_positive, true_positive]))
        curves[name] = {
            "false_positive_rate": points[:, 0].tolist(),
            "true_positive_rate": points[:, 1].tolist(),
        }
    return curves


def precision_recall_points(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], class_names: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Return each class's precision-recall curve against the rest: `recall`, `precision`.

    The recall falls from 1 to 0, where the precision is 1 by convention. Classes without rows
    have no curve and are left out. It is thinned as the ROC is; draw it with straight lines.
    """
    curves = {}
    for k, name in enumerate(class_names):
        positive = labels == k
        if not positive.any():
            continue
        precision, recall, _ = precision_recall_curve(
            positive, probabilities[:, k], drop_intermediate=True
        )
        points = _thinned(np.column_stack([recall, precision]))
        curves[name] = {"recall": points[:, 0].tolist(), "precision": points[:, 1].tolist()}
    return curves


def macro_auroc(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float | None:
    """Return the mean of every class's AUROC against the rest; None when one is undefined."""
    return _mean(_areas(labels, probabilities))


def auroc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """Return the area under the ROC of scores [n], higher where positive [n]; None if undefined."""
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, score))


def average_precision(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """Return the average precision of scores [n], higher where positive [n]; None if none is."""
    return float(average_precision_score(positive, score)) if positive.any() else None


def _areas(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> list[float | None]:
    return [auroc(labels == k, scores) for k, scores in enumerate(probabilities.T)]


def _specificities(counts: NDArray[np.int64]) -> list[float | None]:
    """Return the share of the other classes' rows that each class is not predicted for."""
    true, predicted = np.indices(counts.shape).reshape(2, -1)
    tables = multilabel_confusion_matrix(true, predicted, sample_weight=counts.ravel())
    return [
        float(right / (right + wrong)) if right + wrong else None
        for (right, wrong), _ in tables.tolist()
    ]


def _mean(scores: list[float | None]) -> float | None:
    defined = [score for score in scores if score is not None]
    return float(np.mean(defined)) if len(defined) == len(scores) else None


def _thinned(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out points [n, 2] of long curves (Douglas & Peucker 1973)."""
    if len(points) <= EXACT:
        return points
    from skimage.measure import approximate_polygon

    kept = approximate_polygon(points, TOLERANCE)  # type: ignore[no-untyped-call]
    return np.asarray(kept, dtype=np.float64)
