"""How strange an image is to a network, by its features (`btray.core.features`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

IN_DISTRIBUTION: Final = 0.99
"""Share of fresh images like those of validation that are not to be called strange."""
_COMPONENTS: Final = 32
_ROWS_A_COMPONENT: Final = 4
"""Rows of validation for each component, at least."""
_FOLDS: Final = 5
_NAMES: Final = ("centre", "components", "variances", "noise", "threshold")
_DECILES: Final = "deciles"
_BINS: Final = 10
_SMOOTHING: Final = 0.5
"""Added to the count of every bin: an empty one would make the index infinite."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Detector:
    """A Gaussian of the features of validation: wide along some directions, narrow in the others.

    Probabilistic principal components (Tipping & Bishop 1999): the score is the squared
    Mahalanobis distance (Lee et al. 2018), in which what lies outside the principal subspace
    weighs most (as in ViM, Wang et al. 2022). The features come tamed (as the outliers of ReAct,
    Sun et al. 2021), and from two depths (as in Lee et al. 2018).
    """

    centre: Floats
    """[features]."""
    components: Floats
    """Orthonormal directions [components, features]."""
    variances: Floats
    """Along each of them [components]."""
    noise: float
    """Variance along each direction outside."""
    threshold: float
    """Scores above it are strange."""
    deciles: Floats | None = None
    """Scores of held-out rows that part them in ten equal shares [9], for `drift`; None in bundles
    of before."""

    @property
    def method(self) -> str:
        """Return what the score is, for a report."""
        return f"Mahalanobis distance of the features ({len(self.variances)} principal components)"

    def score(self, features: NDArray[np.floating]) -> Floats:
        """Return how strange n images are [n], from features [n, features]; 0 is the centre."""
        offsets = features.astype(np.float64) - self.centre
        inside = offsets @ self.components.T
        outside = np.maximum((offsets**2).sum(axis=1) - (inside**2).sum(axis=1), 0)
        return np.asarray((inside**2 / self.variances).sum(axis=1) + outside / self.noise)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return it as arrays, the directions in half precision."""
        kept = {name: np.array(getattr(self, name), order="C") for name in _NAMES}
        if self.deciles is not None:
            kept[_DECILES] = self.deciles
        return kept | {"components": kept["components"].astype(np.float16)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, ArrayLike]) -> Self:
        """Take what `tensors` gave, as arrays or tensors.

        Raises:
            ValueError: tensors of other names or shapes, or values that cannot be.

        """
        if set(tensors) - {_DECILES} != set(_NAMES):
            raise ValueError(f"a detector has {', '.join(_NAMES)}, not {', '.join(tensors)}")
        found = {name: np.asarray(given, dtype=np.float64) for name, given in tensors.items()}
        _check(found)
        return cls(
            found["centre"],
            found["components"],
            found["variances"],
            float(found["noise"]),
            float(found["threshold"]),
            found.get(_DECILES),
        )


def _check(found: Mapping[str, Floats]) -> None:
    """Raise ValueError unless shapes belong together and values can be."""
    count = len(found["variances"]) if found["variances"].ndim == 1 else -1
    shapes = {
        "centre": found["centre"].shape[:1],
        "components": (count, *found["centre"].shape[:1]),
        "variances": (count,),
        "noise": (),
        "threshold": (),
        _DECILES: (_BINS - 1,),
    }
    wrong = [name for name, values in found.items() if values.shape != shapes[name]]
    if wrong or not all(np.isfinite(values).all() for values in found.values()):
        raise ValueError(f"damaged detector: {', '.join(wrong) or 'values not finite'}")
    if not (found["variances"] > 0).all() or not found["noise"] > 0:
        raise ValueError("damaged detector: a variance that is not above 0")
    if (np.diff(found.get(_DECILES, np.zeros(1))) < 0).any():
        raise ValueError("damaged detector: deciles that do not ascend")


def fit_detector(
    features: NDArray[np.floating], groups: NDArray[np.int64] | None = None
) -> Detector | None:
    """Fit to the features [rows, features] of validation.

    The threshold is met by 1 % of the rows, each scored by a detector that was fitted without
    its group: patients or near duplicates [rows]; each row its own when None. The deciles are of
    the same scores. None with too few rows or groups to do so, or when the features are all alike.
    """
    units = np.arange(len(features)) if groups is None else groups
    folds = min(_FOLDS, len(np.unique(units)))
    whole = _fitted(features)
    if whole is None or folds < 2:
        return None
    from sklearn.model_selection import GroupKFold  # not for those who only predict

    scores = np.empty(len(features))
    for rest, held_out in GroupKFold(folds).split(features, groups=units):
        part = _fitted(features[rest])
        if part is None:
            return None
        scores[held_out] = part.score(features[held_out])
    measured = replace(
        whole,
        threshold=float(np.quantile(scores, IN_DISTRIBUTION, method="higher")),
        deciles=np.quantile(scores, np.arange(1, _BINS) / _BINS),
    )
    # As it will be read back: the directions are stored in half precision.
    return Detector.from_tensors(measured.tensors())


def _fitted(features: NDArray[np.floating]) -> Detector | None:
    rows, width = features.shape
    count = min(_COMPONENTS, rows // _ROWS_A_COMPONENT, width - 1)
    if count < 1:
        return None
    from sklearn.utils.extmath import randomized_svd  # not for those who only predict

    centre = features.mean(axis=0, dtype=np.float64)
    offsets = features - centre
    _, lengths, directions = randomized_svd(offsets, count, n_iter=7, random_state=0)
    variances = lengths**2 / (rows - 1)
    noise = float(((offsets**2).sum() / (rows - 1) - variances.sum()) / (width - count))
    if not noise > np.finfo(np.float32).tiny:
        return None
    return Detector(centre, directions, np.maximum(variances, noise), noise, 0.0)


def drift(scores: Sequence[float] | Floats, deciles: Sequence[float] | Floats) -> float:
    """Return the population stability index of scores [n] against a detector's deciles [9].

    It sums (found - expected) ln(found / expected) over the ten shares between the deciles, each
    expected to hold a tenth (Siddiqi 2006, Credit Risk Scorecards). Customarily below 0.1 is no
    drift and above 0.25 a large one; without any drift it is about 9 / n on average (Yurdakul &
    Naranjo 2020), so that fewer than some 100 scores tell nothing. Half a score is added to every
    bin, since the logarithm of an empty one is infinite.

    Raises:
        ValueError: no scores, or not nine deciles.

    """
    if not len(scores) or len(deciles) != _BINS - 1:
        raise ValueError(f"{len(scores)} scores and {len(deciles)} deciles: need some and nine")
    bins = np.searchsorted(np.asarray(deciles), np.asarray(scores))
    counts = np.bincount(bins, minlength=_BINS) + _SMOOTHING
    shares = counts / counts.sum()
    return float(((shares - 1 / _BINS) * np.log(shares * _BINS)).sum())
