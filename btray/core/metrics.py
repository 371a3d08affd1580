"""Scores of a classifier, all from scikit-learn; undefined ones are None, never NaN."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

Scores = dict[str, Any]


def metrics_from_confusion(counts: NDArray[np.int64]) -> Scores:
    """Return `accuracy` and macro `precision`, `recall`, `f1` of counts [true, predicted].

    A class without rows or without predictions scores 0 where its ratio is 0/0, so that
    a network that ignores a class is not rewarded for it.
    """
    true, predicted = np.indices(counts.shape).reshape(2, -1)
    weights = counts.ravel()
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, sample_weight=weights, average="macro", zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(true, predicted, sample_weight=weights)),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
        "macro_f1": float(f1),
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

    AUROC is one class against the rest; it is None for a class that has no rows, or all
    of them, and then the macro AUROC is None too.
    """
    classes = len(class_names)
    counts = count_confusion(labels, probabilities.argmax(axis=1), classes)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=np.arange(classes), zero_division=0
    )
    areas = [_auroc(labels == k, probabilities[:, k]) for k in range(classes)]
    defined = [area for area in areas if area is not None]
    per_class = {
        name: {
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "auroc": areas[k],
            "support": int(support[k]),
        }
        for k, name in enumerate(class_names)
    }
    return {
        "rows": len(labels),
        **metrics_from_confusion(counts),
        "macro_auroc": float(np.mean(defined)) if len(defined) == classes else None,
        "per_class": per_class,
        "confusion_matrix": {"class_names": list(class_names), "counts": counts.tolist()},
    }


def roc_points(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], class_names: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Return each class's ROC against the rest: `false_positive_rate`, `true_positive_rate`.

    Classes without rows, or with all of them, have no curve and are left out.
    """
    curves = {}
    for k, name in enumerate(class_names):
        positive = labels == k
        if positive.all() or not positive.any():
            continue
        false_positive, true_positive, _ = roc_curve(positive, probabilities[:, k])
        curves[name] = {
            "false_positive_rate": false_positive.tolist(),
            "true_positive_rate": true_positive.tolist(),
        }
    return curves


def _auroc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, score))
