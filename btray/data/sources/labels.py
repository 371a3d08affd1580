"""Which class a file belongs to: by a table of labels, or by its class folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from btray.data.sources.imagefolder import SPLIT_FOLDERS
from btray.data.sources.tables import Row, Table, read_table
from btray.errors import UserError

KEYS: Final = ("patient_id", "study_uid", "series_uid", "sop_uid", "path")
"""Columns that can say which images a row of labels is about."""


@dataclass(frozen=True)
class Known:
    """What one row of a table of labels says."""

    label: str
    split: str | None = None
    patient_id: str | None = field(default=None, repr=False)
    """The table's own, not a pseudonym."""


@dataclass
class Labels:
    """A table of labels, looked up by one of its columns."""

    place: str
    key: str
    known: dict[str, Known]
    matched: set[str] = field(default_factory=set)

    def find(self, identifiers: Mapping[str, str | None]) -> Known | None:
        """Return what is known of an image with these identifiers, by the names in KEYS."""
        identifier = identifiers.get(self.key)
        if identifier is None or identifier not in self.known:
            return None
        self.matched.add(identifier)
        return self.known[identifier]

    def notes(self) -> tuple[str, ...]:
        """Return a line on the rows that matched no file, if there are any."""
        unmatched = len(self.known) - len(self.matched)
        if not unmatched:
            return ()
        return (f"{self.place}: {unmatched:,} of {len(self.known):,} labels match no file",)


def read_labels(uri: str, class_names: tuple[str, ...], keys: tuple[str, ...] = KEYS) -> Labels:
    """Read a table with a column `label` and one of `keys`.

    Raises:
        UserError: unreadable, a column missing, a label of no known class, an unknown
            split, or one identifier with two labels.

    """
    table = read_table(uri)
    key = _key(table, keys)
    table.require(key, "label")
    known: dict[str, Known] = {}
    lines: dict[str, str] = {}
    for row in table.rows:
        identifier, fresh = _row(table, row, key, class_names)
        if known.get(identifier, fresh) != fresh:
            raise UserError(
                f"{table.place}: {row.where}: another label, split or patient than on "
                f"{lines[identifier]} for the same {key}"
            )
        known[identifier], lines[identifier] = fresh, row.where
    return Labels(table.place, key, known)


def _key(table: Table, keys: tuple[str, ...]) -> str:
    found = [key for key in keys if key in table.columns]
    if "path" in found:
        return "path"  # `patient_id` beside it says whose the file is
    if len(found) != 1:
        raise UserError(
            f"{table.place}: needs a column label and one of {', '.join(keys)}; "
            f"it has: {', '.join(table.columns)}"
        )
    return found[0]


def _row(table: Table, row: Row, key: str, class_names: tuple[str, ...]) -> tuple[str, Known]:
    identifier = row.get(key)
    if identifier is None:
        raise UserError(f"{table.place}: {row.where}: {key} is empty")
    return identifier, Known(
        table.label(row, class_names),
        split_of(table, row),
        row.get("patient_id") if key == "path" else None,
    )


def split_of(table: Table, row: Row) -> str | None:
    """Return the split a row names, if it names one; raises UserError if there is none such."""
    name = table.choice(row, "split", tuple(SPLIT_FOLDERS))
    return None if name is None else SPLIT_FOLDERS[name]
