"""From slices to series and patients: one answer for all slices of a subject."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from btray.core.binary import NO_TUMOUR
from btray.core.calibration import Calibration, scaled
from btray.core.metrics import Scores, evaluate_probabilities

How = Literal["mean_logit", "max", "vote"]
CONFLICT: Final = -1
"""Label of a subject whose slices show different tumours."""
_LEVELS: Final = {"patients": "patient_id", "series": "series_id"}
"""Columns of a data set that name the subjects of each level."""


def by_subject(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    about: Mapping[str, Sequence[Any]],
    class_names: Sequence[str],
    calibration: Calibration,
) -> dict[str, Scores | None]:
    """Return the scores of patients and of series, by each way to aggregate.

    Args:
        logits: [rows, classes].
        labels: True classes [rows], 0..classes-1.
        about: `patient_id` and `series_id` of every row [rows], None where unknown.
        class_names: In the order of the logits.
        calibration: Of the bundle; it scales the logits.

    Returns:
        `patients` and `series`; each None where no row's is known, else `count` of subjects
        scored, `excluded` subjects whose label is a `CONFLICT`, `rows_without` a known subject,
        which are left out, and the `evaluate_probabilities` of `mean_logit`, `max` and `vote`
        (None when every subject is excluded).

    """
    own = scaled(logits, calibration)
    return {
        level: _scores(own, labels, about[column], class_names) for level, column in _LEVELS.items()
    }


def aggregate(
    logits: NDArray[np.float64], subjects: Sequence[str], how: How, class_names: Sequence[str]
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the subjects, sorted, and their probabilities [subjects, classes].

    `mean_logit`: the softmax of the mean of the slices' logits.

    `max`: the probabilities of the slice that is most certain to show a tumour, which is the one
    of the least p(notumor); so the subject's tumour score is the largest of its slices'. Without
    such a class, the slice with the largest probability of any class. Of several, the first.

    `vote`: each of n slices votes for its most probable class, and the slices' mean
    probabilities are one vote more: (votes + mean) / (n + 1). The majority wins, and the mean
    decides ties only.

    Args:
        logits: [rows, classes], divided by the temperature.
        subjects: Of every row [rows].
        how: One of the above.
        class_names: In the order of the logits.

    """
    names, units, slices = np.unique(
        np.asarray(subjects, dtype=str), return_inverse=True, return_counts=True
    )

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.zeros((len(names), values.shape[1]))
        np.add.at(sums, units, values)
        return sums / slices[:, None]

    if how == "mean_logit":
        probabilities = softmax(mean(logits), axis=1)
    elif how == "max":
        order = np.lexsort((_tumour_rank(logits, class_names), units))
        firsts = np.cumsum(slices) - slices
        probabilities = softmax(logits[order[firsts]], axis=1)
    else:
        votes = np.eye(logits.shape[1])[logits.argmax(axis=1)]
        share = slices[:, None] / (slices[:, None] + 1)
        probabilities = share * mean(votes) + (1 - share) * mean(softmax(logits, axis=1))
    return names.tolist(), np.asarray(probabilities, dtype=np.float64)


def subject_labels(
    labels: NDArray[np.int64], subjects: Sequence[str], class_names: Sequence[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the subjects, sorted, and their labels [subjects] by those of their slices [rows].

    Slices without a tumour say nothing against one elsewhere: a subject with some of them and
    some of one tumour is of that tumour's class. Slices of different tumours (or, where there
    is no class `notumor`, of any two classes) make a `CONFLICT`.
    """
    names, units = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    present = np.zeros((len(names), len(class_names)), dtype=np.bool_)
    present[units, labels] = True
    if NO_TUMOUR in class_names:
        several = present.sum(axis=1) > 1
        present[several, list(class_names).index(NO_TUMOUR)] = False
    single = present.sum(axis=1) == 1
    return names.tolist(), np.where(single, present.argmax(axis=1), CONFLICT).astype(np.int64)


def _tumour_rank(logits: NDArray[np.float64], class_names: Sequence[str]) -> NDArray[np.float64]:
    """Return what is least for the slice [rows] most certain to show a tumour."""
    # Of logarithms: probabilities near 0 and 1 are rounded to one another.
    logarithms = log_softmax(logits, axis=1)
    if NO_TUMOUR in class_names:
        return np.asarray(logarithms[:, list(class_names).index(NO_TUMOUR)])
    return -np.asarray(logarithms.max(axis=1))


def _scores(
    logits: NDArray[np.float64],
    labels: NDArray[np.int64],
    subjects: Sequence[str | None],
    class_names: Sequence[str],
) -> Scores | None:
    known = [row for row, subject in enumerate(subjects) if subject is not None]
    if not known:
        return None
    named = [subject for subject in subjects if subject is not None]
    _, truth = subject_labels(labels[known], named, class_names)
    kept = truth != CONFLICT
    scores: Scores = {
        "count": int(kept.sum()),
        "excluded": int((~kept).sum()),
        "rows_without": len(subjects) - len(known),
    }
    for how in get_args(How):
        _, probabilities = aggregate(logits[known], named, how, class_names)
        scores[how] = (
            evaluate_probabilities(truth[kept], probabilities[kept], class_names)
            if kept.any()
            else None
        )
    return scores
