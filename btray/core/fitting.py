"""What is fitted on validation once the weights are there: the rest of a bundle."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from btray.core.calibration import Calibration, fit_calibration
from btray.core.strange import Detector, fit_detector


@dataclass(frozen=True)
class HeldOut:
    """What a network answers to n rows it was not trained on, in stored order."""

    labels: NDArray[np.int64]
    """[n]."""
    logits: NDArray[np.float32]
    """[n, classes]."""
    groups: NDArray[np.int64]
    """Rows of one group [n] are of one patient or alike: no independent evidence."""
    features: NDArray[np.float32] | None
    """Of every `stride`-th row; None for a network without one classifier."""
    stride: int = 1


def fit(held_out: HeldOut, class_names: Sequence[str]) -> tuple[Calibration, Detector | None]:
    """Fit the calibration and, where there are features, the detector of strange images."""
    calibration = fit_calibration(
        held_out.logits, held_out.labels, groups=held_out.groups, class_names=class_names
    )
    if held_out.features is None:
        return calibration, None
    rows = slice(None, None, held_out.stride)
    detector = fit_detector(held_out.features, held_out.groups[rows])
    return calibration, detector


def group_numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    """Return a number for every group's name [n]."""
    return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1].astype(np.int64)
