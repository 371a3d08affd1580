"""Which labels are probably wrong: confident learning."""

import numpy as np
from numpy.typing import NDArray


def doubtful_labels(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows whose label is probably wrong, worst first, and the class of each instead.

    Confident learning (Northcutt, Jiang and Chuang, 2021, doi:10.1613/jair.1.12125): a row counts
    as a class when its probability is at least the mean of those that are labelled so. A row
    that counts as another class than its label, and more so, is doubted; the worst is the
    one whose label is the least probable beside the other class. A network that has
    seen a row with its label hardly doubts it: the probabilities must be out of fold.

    Args:
        labels: [rows], from 0 to classes - 1.
        probabilities: [rows, classes], of a network that was not trained on the row.

    Returns:
        Row numbers and class numbers, both [doubted].

    """
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    usual = np.array(
        [own[labels == k].mean() if (labels == k).any() else np.inf for k in range(classes)]
    )
    sure = np.where(probabilities >= usual, probabilities, -np.inf)
    instead = sure.argmax(axis=1)
    margin = own - probabilities[np.arange(len(labels)), instead]
    doubted = np.flatnonzero((sure.max(axis=1) > -np.inf) & (instead != labels))
    doubted = doubted[np.argsort(margin[doubted], kind="stable")]
    return doubted, instead[doubted]
