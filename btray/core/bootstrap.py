"""How far the scores of two models on the same rows differ, and by how much that is noise."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_PORTION: Final = 100
"""Resamples computed at once, to bound memory."""


@dataclass(frozen=True)
class Difference:
    """The second model's score less the first's."""

    value: float
    """On the rows as they are."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


def paired_bootstrap(
    labels: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    classes: int,
    groups: NDArray[np.int64] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return the differences in `accuracy` and `macro_f1` with their bootstrap intervals.

    Both models are scored on the same resample, drawn with replacement from the rows, or from
    whole groups where rows are not independent (Efron & Tibshirani 1993, percentile interval;
    Field & Welsh 2007 for groups). A class with neither rows nor predictions has F1 0.

    Args:
        labels: True classes [n], 0..classes-1.
        first: The first model's answers [n].
        second: The second model's answers [n].
        classes: Number of classes.
        groups: Group of every row [n], any whole numbers; each row its own when None.
        resamples: Number of resamples.
        confidence: Probability that the interval covers, 0..1.
        seed: Of the resamples.

    Raises:
        ValueError: arrays of different lengths, or fewer than two groups.

    """
    units = np.arange(len(labels)) if groups is None else groups
    if not len(labels) == len(first) == len(second) == len(units):
        raise ValueError("labels, answers and groups must have one value a row")
    _, units = np.unique(units, return_inverse=True)
    count = int(units.max(initial=-1)) + 1
    if count < 2:
        raise ValueError("fewer than two groups: nothing to resample")
    pairs = [_confusions(labels, answers, units, count, classes) for answers in (first, second)]
    drawn = [
        _differences(pairs, weights, classes)
        for weights in drawn_groups(count, resamples, seed, _PORTION)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), (tail, 1 - tail), axis=0)
    (value,) = _differences(pairs, np.ones((1, count)), classes)
    return {
        name: Difference(float(value[k]), float(low[k]), float(high[k]))
        for k, name in enumerate(("accuracy", "macro_f1"))
    }


def drawn_groups(
    groups: int, resamples: int, seed: int, portion: int
) -> Iterator[NDArray[np.float64]]:
    """Yield how often each group was drawn [up to `portion`, groups], `resamples` rows in all.

    As many groups are drawn, with replacement, as there are. The portion changes nothing but
    memory.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, portion):
        size = min(portion, resamples - start)
        yield rng.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(np.float64)


@dataclass(frozen=True)
class McNemar:
    """The rows that only one of two models answers right."""

    first_only: int
    """Rows that the first model answers right and the second wrong."""
    second_only: int
    """Rows that the second model answers right and the first wrong."""
    p_value: float
    """Probability of counts at least as uneven if both models were right equally often, 0..1;
    1 without such rows."""


def mcnemar(
    labels: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> McNemar:
    """Test whether two models are right equally often (McNemar 1947), exact and two-sided.

    It takes the rows for independent: where slices of one patient stand among them the p value
    is too small, and the interval of `paired_bootstrap` over groups is the one to go by.

    Args:
        labels: True classes [n].
        first: The first model's answers [n].
        second: The second model's answers [n].

    Raises:
        ValueError: arrays of different lengths.

    """
    from scipy.stats import binomtest  # takes a second or more to load

    if not len(labels) == len(first) == len(second):
        raise ValueError("labels and answers must have one value a row")
    one, two = first == labels, second == labels
    first_only, second_only = int((one & ~two).sum()), int((two & ~one).sum())
    discordant = first_only + second_only
    p_value = float(binomtest(first_only, discordant).pvalue) if discordant else 1.0
    return McNemar(first_only, second_only, p_value)


def _confusions(
    labels: NDArray[np.int64],
    answers: NDArray[np.int64],
    units: NDArray[np.int64],
    count: int,
    classes: int,
) -> NDArray[np.float64]:
    """Return every group's counts [groups, true * predicted]."""
    counts = np.zeros((count, classes * classes))
    np.add.at(counts, (units, labels * classes + answers), 1.0)
    return counts


def _differences(
    pairs: list[NDArray[np.float64]], weights: NDArray[np.float64], classes: int
) -> NDArray[np.float64]:
    """Return the differences [resamples, 2] under weights of the groups [resamples, groups]."""
    first, second = (_scores((weights @ counts).reshape(-1, classes, classes)) for counts in pairs)
    return second - first


def _scores(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return accuracy and macro-F1 [resamples, 2] of counts [resamples, true, predicted]."""
    hits = np.diagonal(counts, axis1=1, axis2=2)
    both = counts.sum(axis=1) + counts.sum(axis=2)
    f1 = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    accuracy = hits.sum(axis=1) / counts.sum(axis=(1, 2))
    return np.stack([accuracy, f1.mean(axis=1)], axis=1)
