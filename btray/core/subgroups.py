"""Scores of parts of a split, by what is known of the images: where a classifier is weak."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from btray.core.intervals import CONFIDENCE, Interval, ratio_intervals
from btray.core.labels import CLASS_NAMES, canonical_label

LEAST: Final = 20
"""Rows below which a subgroup is not scored."""
MOST_COLLECTIONS: Final = 20
"""More first folders than this are not collections but patients or studies."""
LEAST_UNITS: Final = 10
"""A folder of fewer patients (or, where unknown, groups) may carry a patient's name."""
_SIZES: Final = (128, 256, 512, 1024)
"""Where bands of sizes end, in pixels."""
_AGES: Final = (18, 40, 60, 80)
"""Where bands of ages end, in years."""
_SPLITS: Final = ("train", "training", "val", "valid", "validation", "test", "testing")
"""Folders that stand for a split, in lower case."""

Columns = dict[str, list[str | None]]


def subgroups(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    columns: Mapping[str, Sequence[str | None]],
    groups: NDArray[Any] | Sequence[str],
    class_names: Sequence[str],
    least: int = LEAST,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the scores of each value of each attribute, the least accurate first.

    Of many subgroups one in twenty is beyond noise by chance alone.

    Args:
        labels: True classes [n], 0..classes-1.
        probabilities: [n, classes].
        columns: Attributes by name, a value a row [n], None where unknown; attributes without
            any known value are left out.
        groups: Group of every row [n]: patient or cluster of near duplicates.
        class_names: In the order of the probabilities.
        least: Fewest rows that are scored.
        seed: Of the resamples.

    Returns:
        One dictionary a subgroup: `attribute`, `value` (None: unknown), `rows`, `groups`,
        `classes` (rows by class name: a mix unlike that of all rows explains many a gap),
        `accuracy`, `macro_f1` over the classes it has rows of, `accuracy_interval` [low, high]
        at 95 %, `gap` (its accuracy less that of all rows, -1..1) and `beyond_noise`: whether
        the interval excludes the accuracy of all rows. The interval is by resampling groups;
        where all rows are right, or all wrong, which no resample can change, it is that of
        Clopper and Pearson (1934) with every group one trial. With fewer than two groups there
        is none, and nothing is beyond noise. Subgroups of too few rows come last, the
        largest first; all their scores are None.

    """
    overall = float((probabilities.argmax(axis=1) == labels).mean())
    names = np.asarray(groups)
    found = []
    for attribute, values in columns.items():
        rows_of: dict[str | None, list[int]] = defaultdict(list)
        for row, value in enumerate(values):
            rows_of[value].append(row)
        if set(rows_of) <= {None}:
            continue
        for value, rows in rows_of.items():
            sizes = np.bincount(labels[rows], minlength=len(class_names))
            about = {
                "attribute": attribute,
                "value": value,
                "rows": len(rows),
                "groups": len(np.unique(names[rows])),
                "classes": dict(zip(class_names, sizes.tolist(), strict=True)),
            }
            scores = dict.fromkeys(_SCORES)
            if len(rows) >= least:
                scores = _scores(labels[rows], probabilities[rows], names[rows], overall, seed)
            found.append({**about, **scores})
    return sorted(found, key=_order)


def columns_of(
    table: Mapping[str, Sequence[Any]], class_names: Sequence[str] = CLASS_NAMES
) -> Columns:
    """Return the attributes of subgroups by the columns of a data set's rows.

    Args:
        table: `height`, `width`, `mode`, `source`, `plane`, `sequence`, `field_strength`,
            `vendor`, `sex`, `age`, `patient_id` and `group_id`, as in `btray.data.dataset.SCHEMA`.
        class_names: Folders of these names are no collections.

    """
    return {
        "plane": list(table["plane"]),
        "sequence": list(table["sequence"]),
        "vendor": list(table["vendor"]),
        "field strength": [field_strength_band(value) for value in table["field_strength"]],
        "collection": _collections(table, class_names),
        "size": [size_band(*size) for size in zip(table["height"], table["width"], strict=True)],
        "colour mode": list(table["mode"]),
        "sex": list(table["sex"]),
        "age": [age_band(age) for age in table["age"]],
    }


def age_band(age: int | None) -> str | None:
    """Return the band of an age in whole years, such as `40-59`; None where unknown."""
    return None if age is None else _band(age, _AGES)


def size_band(height: int, width: int) -> str:
    """Return the band of an image's longer side in pixels, such as `256-511 px`."""
    return f"{_band(max(height, width), _SIZES)} px"


def field_strength_band(tesla: float | None) -> str | None:
    """Return a field strength in tesla to the next half, such as `1.5 T`; None where unknown.

    Scanners give what they measure: 1.494 is 1.5, and 2.894 is 3.
    """
    if tesla is None:
        return None
    return "below 1 T" if tesla < 1 else f"{round(2 * tesla) / 2:g} T"


def _band(value: float, ends: Sequence[int]) -> str:
    """Name the band of a value; a band starts where the one below it ends."""
    if value >= ends[-1]:
        return f"{ends[-1]} and more"
    number = int(np.searchsorted(ends, value, side="right"))
    return f"{ends[number - 1] if number else 0}-{ends[number] - 1}"


def _collections(
    table: Mapping[str, Sequence[Any]], class_names: Sequence[str]
) -> list[str | None]:
    """Return the collection every image came with, by the first folder of its path [rows].

    Folders that all paths share, and one that stands for a split, are passed over. A folder
    named like a class is no collection, nor is one of fewer than LEAST_UNITS patients, which may
    be a patient's. All are None when there is one collection only, or more than MOST_COLLECTIONS.
    """
    paths = [PurePosixPath(source).parts[:-1] for source in table["source"]]
    ends = zip(min(paths, default=()), max(paths, default=()), strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    folders = [_first(path[shared:], class_names) for path in paths]
    units: dict[str, set[str]] = defaultdict(set)
    owners = zip(folders, table["patient_id"], table["group_id"], strict=True)
    for folder, patient, group in owners:
        if folder is not None:
            units[folder].add(patient or group)
    known = {folder for folder, own in units.items() if len(own) >= LEAST_UNITS}
    if len(known) < 2 or len(units) > MOST_COLLECTIONS:
        return [None] * len(folders)
    return [folder if folder in known else None for folder in folders]


def _first(folders: Sequence[str], class_names: Sequence[str]) -> str | None:
    inner = folders[1:] if folders and folders[0].lower() in _SPLITS else folders
    return inner[0] if inner and canonical_label(inner[0], class_names) is None else None


_SCORES: Final = ("accuracy", "macro_f1", "accuracy_interval", "gap", "beyond_noise")


def _scores(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    groups: NDArray[Any],
    overall: float,
    seed: int,
) -> dict[str, Any]:
    predicted = probabilities.argmax(axis=1)
    # A class without rows here says nothing of the subgroup.
    f1 = f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    accuracy = float((predicted == labels).mean())
    interval = _interval(predicted == labels, groups, seed)
    return {
        "accuracy": accuracy,
        "macro_f1": float(f1),
        "accuracy_interval": interval,
        "gap": accuracy - overall,
        "beyond_noise": interval is not None and not interval[0] <= overall <= interval[1],
    }


def _interval(right: NDArray[np.bool_], groups: NDArray[Any], seed: int) -> Interval | None:
    trials = len(np.unique(groups))
    if trials > 1 and (right.all() or not right.any()):
        ends = binomtest(trials if right.all() else 0, trials).proportion_ci(CONFIDENCE)
        return [float(ends.low), float(ends.high)]
    (interval,) = ratio_intervals(
        right[:, None], np.ones((len(right), 1), dtype=np.bool_), groups, seed=seed
    )
    return interval


def _order(subgroup: dict[str, Any]) -> tuple[Any, ...]:
    accuracy = subgroup["accuracy"]
    name = (subgroup["attribute"], subgroup["value"] or "")
    return (accuracy is None, -subgroup["rows"] if accuracy is None else accuracy, name)
