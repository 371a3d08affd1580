"""Which split every row belongs to: by group, stratified, seeded; pure Python and numpy."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from btray.data.dataset import EXCLUDED, SPLITS
from btray.errors import UserError

_PRECEDENCE: Final = ("test", "validation")

Counts = dict[str, Counter[str]]
"""Rows by group and label, or by split and label."""


def assign_splits(
    labels: Sequence[str],
    groups: Sequence[str],
    official: Sequence[str | None],
    fractions: Mapping[str, float],
    seed: int,
) -> list[str]:
    """Return the split of each of n rows; no group stands in two of them.

    Official validation and test splits are kept. A row of a group that also stands in
    a split of higher precedence (test, validation, train) becomes `excluded`. Splits
    that are not official are drawn by group from the other rows. The result depends on
    the seed and the groups' names, not on the rows' order.

    Raises:
        UserError: impossible fractions, or a class that cannot be in every split.

    """
    check_fractions(fractions)
    fixed = _fixed_groups(groups, official)
    open_splits = [split for split in SPLITS if split == "train" or split not in set(official)]
    free = [row for row, group in enumerate(groups) if group not in fixed]
    drawn = stratify(
        [labels[row] for row in free],
        [groups[row] for row in free],
        {split: fractions[split] for split in open_splits},
        seed,
    )
    by_group = {**fixed, **drawn}
    splits = [
        _final(by_group[group], own, group in fixed)
        for group, own in zip(groups, official, strict=True)
    ]
    _check_complete(labels, splits, SPLITS)
    return splits


def assign_folds(
    labels: Sequence[str],
    groups: Sequence[str],
    official: Sequence[str | None],
    test: float,
    folds: int,
    seed: int,
) -> tuple[list[str], list[int | None]]:
    """Return the split and the fold, from 0, of each of n rows for cross-validation.

    An official test split is kept, otherwise a share `test` (0: none) is drawn by group.
    Rows of a group that also stands in test are `excluded`. The others form the folds, by
    group and stratified (scikit-learn's StratifiedGroupKFold); fold 0 is the validation
    split. Test and excluded rows have no fold. Independent of the rows' order.

    Raises:
        UserError: impossible numbers, or a class with fewer groups than folds.

    """
    _check_folds(test, folds)
    fixed = {group: "test" for group, own in zip(groups, official, strict=True) if own == "test"}
    by_group = fixed or _drawn_test(labels, groups, test, seed)
    splits = [
        _final(by_group.get(group, "train"), "test" if own == "test" else "train", group in fixed)
        for group, own in zip(groups, official, strict=True)
    ]
    rest = [row for row, split in enumerate(splits) if split == "train"]
    numbers = _stratified_folds([labels[r] for r in rest], [groups[r] for r in rest], folds, seed)
    fold_of: list[int | None] = [None] * len(splits)
    for row, number in zip(rest, numbers, strict=True):
        fold_of[row] = number
        splits[row] = "train" if number else "validation"
    _check_complete(labels, splits, [split for split in SPLITS if split != "test" or by_group])
    return splits, fold_of


def untorn_folds(groups: Sequence[str], folds: Sequence[int | None]) -> list[int | None]:
    """Return a source's own folds [n] so that no group [n] stands in two of them.

    Of a group in several folds only the rows of its lowest fold keep theirs.
    """
    lowest: dict[str, int] = {}
    for group, fold in zip(groups, folds, strict=True):
        if fold is not None:
            lowest[group] = min(fold, lowest.get(group, fold))
    return [
        fold if fold is None or fold == lowest[group] else None
        for group, fold in zip(groups, folds, strict=True)
    ]


def _check_folds(test: float, folds: int) -> None:
    if not 0 <= test < 1:
        raise UserError(f"share of test {test:g}: must be at least 0 and below 1")
    if folds < 2:
        raise UserError(f"{_count(folds, 'fold')}: cross-validation needs 2 or more")


def _drawn_test(
    labels: Sequence[str], groups: Sequence[str], test: float, seed: int
) -> dict[str, str]:
    if not test:
        return {}
    return stratify(labels, groups, {"train": 1 - test, "test": test}, seed)


def _stratified_folds(
    labels: Sequence[str], groups: Sequence[str], folds: int, seed: int
) -> list[int]:
    members = {group: Counter[str]() for group in groups}
    for label, group in zip(labels, groups, strict=True):
        members[group][label] += 1
    _check_groups(_queues(members, seed), folds)
    order = sorted(range(len(labels)), key=lambda row: (groups[row], labels[row]))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    sorted_labels, sorted_groups = [labels[r] for r in order], [groups[r] for r in order]
    numbers = [0] * len(labels)
    for number, (_, held_out) in enumerate(splitter.split(order, sorted_labels, sorted_groups)):
        for position in held_out:
            numbers[order[position]] = number
    _check_folds_complete(labels, numbers, folds)
    return numbers


def _check_folds_complete(labels: Sequence[str], numbers: Sequence[int], folds: int) -> None:
    present = set(zip(numbers, labels, strict=True))
    for label in sorted(set(labels)):
        for number in range(folds):
            if (number, label) not in present:
                raise UserError(
                    f"class {label} has no image in fold {number}: its images belong together in "
                    "groups too large to spread; ask for fewer folds or another seed"
                )


def check_patients(
    place: str, patients: Sequence[str | None], official: Sequence[str | None]
) -> None:
    """Raise UserError when a patient [n] stands in several of the source's own splits [n]."""
    places: dict[str, set[str]] = {}
    for patient, split in zip(patients, official, strict=True):
        if patient is not None and split is not None:
            places.setdefault(patient, set()).add(split)
    torn = Counter(" and ".join(sorted(splits)) for splits in places.values() if len(splits) > 1)
    if torn:
        counts = ", ".join(f"{count:,} in {splits}" for splits, count in sorted(torn.items()))
        noun = "patient stands" if torn.total() == 1 else "patients stand"
        raise UserError(
            f"{place}: {torn.total():,} {noun} in more than one official split or fold ({counts}); "
            "mend the splits, or give --exclude-from-train-what-is-in-test"
        )


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raise UserError unless every split's fraction is above 0 and they add up to 1."""
    if any(not fractions[split] > 0 for split in SPLITS) or abs(sum(fractions.values()) - 1) > 1e-6:
        shares = ", ".join(f"{split} {fractions[split]:g}" for split in SPLITS)
        raise UserError(
            f"split fractions {shares}: each must be above 0, and validation and test together "
            "below 1"
        )


def stratify(
    labels: Sequence[str], groups: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Return the split of every group so that each label meets the fractions.

    Label by label, groups are shuffled and taken large first, each to the split that
    misses most rows of the label; so a split has at most one group too many, and every
    split gets a group. `fractions` are weights: they need not add up to 1.

    Raises:
        UserError: a label with fewer groups than there are splits.

    """
    members: Counts = defaultdict(Counter)
    for label, group in zip(labels, groups, strict=True):
        members[group][label] += 1
    total = Counter(labels)
    weight = sum(fractions.values())
    filled: Counts = {split: Counter() for split in fractions}
    assigned: dict[str, str] = {}
    queues = _queues(members, seed)
    _check_groups(queues, len(fractions))
    for label, queue in queues.items():
        for position, group in enumerate(queue):
            empty = [split for split in fractions if not filled[split][label]]
            must_fill = len(queue) - position <= len(empty)
            missing = {
                split: fractions[split] / weight * total[label] - filled[split][label]
                for split in (empty if must_fill else fractions)
            }
            split = max(missing, key=lambda name: missing[name])
            assigned[group] = split
            filled[split].update(members[group])
    return assigned


def _queues(members: Counts, seed: int) -> dict[str, list[str]]:
    """Return the groups of each label, in order of assignment.

    A group of several labels queues under its commonest; labels with such groups first,
    so that the others make up for them.
    """
    queues: dict[str, list[str]] = defaultdict(list)
    for group in sorted(members):
        counts = members[group]
        queues[min(counts, key=lambda label: (-counts[label], label))].append(group)
    for label, queue in queues.items():
        digest = hashlib.sha256(f"{seed}:{label}".encode()).digest()
        np.random.default_rng(int.from_bytes(digest[:8])).shuffle(queue)
        queue.sort(key=lambda group: (len(members[group]) == 1, -members[group].total()))
    mixed = {label for label, queue in queues.items() if any(len(members[g]) > 1 for g in queue)}
    return {label: queues[label] for label in sorted(queues, key=lambda x: (x not in mixed, x))}


def _check_groups(queues: Mapping[str, list[str]], splits: int) -> None:
    for label, queue in queues.items():
        if len(queue) < splits:
            raise UserError(
                f"class {label} has {_count(len(queue), 'group')} of images that belong together; "
                f"{splits} splits need at least {splits}; add images of other patients"
            )


def _fixed_groups(groups: Sequence[str], official: Sequence[str | None]) -> dict[str, str]:
    """Return the split of the groups that stand in an official validation or test split."""
    fixed: dict[str, str] = {}
    for split in reversed(_PRECEDENCE):
        named = (group for group, own in zip(groups, official, strict=True) if own == split)
        fixed.update(dict.fromkeys(named, split))
    return fixed


def _final(split: str, own: str | None, fixed: bool) -> str:
    return EXCLUDED if fixed and own != split else split


def _check_complete(labels: Sequence[str], splits: Sequence[str], needed: Sequence[str]) -> None:
    present = Counter(zip(splits, labels, strict=True))
    for label in sorted(set(labels)):
        for split in needed:
            if not present[split, label]:
                raise UserError(
                    f"class {label} has no image in the {split} split that is not a twin of one "
                    "in another; add images or leave the official splits out"
                )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
