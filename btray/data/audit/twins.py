"""What duplicates do to a data set: leaks between splits, and two labels for one slice."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Twins:
    """Sets of rows that show the same slice."""

    groups: list[list[int]]
    """Row numbers of every set of two or more, largest set first."""

    @classmethod
    def of(cls, numbers: NDArray[np.int64]) -> "Twins":
        """Collect rows [n] by the number of the set they are in."""
        members: dict[int, list[int]] = defaultdict(list)
        for row, number in enumerate(numbers.tolist()):
            members[number].append(row)
        groups = [rows for rows in members.values() if len(rows) > 1]
        return cls(sorted(groups, key=lambda rows: (-len(rows), rows)))

    @property
    def images(self) -> int:
        """Rows in all sets."""
        return sum(map(len, self.groups))

    def torn(self, keys: Sequence[str | None]) -> "Twins":
        """Return the sets whose rows have more than one key [n]; rows without one left out."""
        torn = []
        for rows in self.groups:
            known = [row for row in rows if keys[row] is not None]
            if len({keys[row] for row in known}) > 1:
                torn.append(known)
        return Twins(torn)


def torn_patients(patients: Sequence[str | None], keys: Sequence[str | None]) -> int:
    """Return how many patients [n] have rows of more than one key [n]."""
    seen: dict[str, set[str]] = defaultdict(set)
    for patient, key in zip(patients, keys, strict=True):
        if patient is not None and key is not None:
            seen[patient].add(key)
    return sum(len(found) > 1 for found in seen.values())
