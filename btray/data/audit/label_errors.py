"""Labels that are probably wrong, by confident learning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline

from btray.data.audit.shortcut import folds

_FOLDS: Final = 3
_COMPONENTS: Final = 64
_TREES: Final = 200


@dataclass(frozen=True)
class LabelError:
    """A row whose label is probably wrong."""

    row: int
    """Its number."""
    suggested: str
    """What it looks like."""
    confidence: float
    """Predicted probability of that label, 0..1."""
    given: float
    """Predicted probability of the label it has, 0..1."""


def predict_labels(
    pictures: NDArray[np.uint8], labels: Sequence[str], groups: Sequence[str], seed: int
) -> tuple[NDArray[np.float64], list[str]] | None:
    """Predict labels [n] from small pictures [n, side, side], cross-validated by group [n].

    Returns probabilities [n, classes] and the class names; None where there are too few
    groups. Extremely randomised trees (Geurts et al. 2006) on principal
    components of the pictures, each at mean 0 and deviation 1: cheap, and blind to brightness.
    """
    count = folds(labels, groups, _FOLDS)
    if not count:
        return None
    names = sorted(set(labels))
    truth = np.array([names.index(label) for label in labels])
    vectors = pictures.reshape(len(pictures), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(vectors.std(axis=1, keepdims=True), 1)
    probabilities = np.zeros((len(labels), len(names)))
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for train, test in splitter.split(vectors, truth, groups):
        components = min(_COMPONENTS, len(train) - 1)
        model = make_pipeline(
            PCA(components, random_state=seed),
            ExtraTreesClassifier(_TREES, n_jobs=-1, random_state=seed),
        )
        model.fit(vectors[train], truth[train])
        probabilities[np.ix_(test, np.unique(truth[train]))] = model.predict_proba(vectors[test])
    return probabilities, names


def find_label_errors(
    probabilities: NDArray[np.float64], labels: Sequence[str], names: Sequence[str]
) -> list[LabelError]:
    """Return the rows whose labels [n] are probably wrong, the surest first.

    Confident learning (Northcutt, Jiang & Chuang 2021, "prune by noise rate"): an image
    counts for the label among those it is predicted with at least the mean probability that
    images of that label have; the off-diagonal counts of given against counted label say how
    many errors of each kind there are, and the images of largest margin are taken for them.
    `probabilities` [n, classes] are of models that did not see the images.
    """
    given = np.array([names.index(label) for label in labels])
    own = np.array(
        [probabilities[given == k, k].mean() if k in given else np.inf for k in range(len(names))]
    )
    confident = np.where(probabilities >= own, probabilities, -1.0)
    counted = confident.argmax(axis=1)
    counts = confident.max(axis=1) >= 0
    found = []
    for true in range(len(names)):
        for label in range(len(names)):
            if true == label:
                continue
            number = np.count_nonzero(counts & (given == label) & (counted == true))
            candidates = np.flatnonzero(given == label)
            margin = probabilities[candidates, true] - probabilities[candidates, label]
            chosen = candidates[np.argsort(-margin, kind="stable")[:number]]
            found += [
                LabelError(
                    int(row),
                    names[true],
                    float(probabilities[row, true]),
                    float(probabilities[row, label]),
                )
                for row in chosen
                if probabilities[row].argmax() == true
            ]
    return sorted(found, key=lambda error: error.given - error.confidence)
