"""Tables of labels that people write: CSV, or Parquet."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet

from btray.core.images import ImageError
from btray.core.labels import canonical_label
from btray.data.sources.tree import fetch, shown
from btray.errors import UserError


@dataclass(frozen=True)
class Row:
    """One row of a table: its line (of Parquet: its number from 1) and its cells as text."""

    where: str
    cells: dict[str, str]

    def get(self, column: str) -> str | None:
        """Return a cell, or None where the column or its text is missing."""
        return self.cells.get(column) or None


@dataclass(frozen=True)
class Table:
    """A table with a header."""

    place: str
    """What messages call it."""
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def require(self, *columns: str) -> None:
        """Raise UserError unless it has all these columns."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            raise UserError(
                f"{self.place}: no column {', '.join(missing)}; it has: "
                f"{', '.join(self.columns) or 'none'}"
            )

    def label(self, row: Row, class_names: Sequence[str]) -> str:
        """Return the class a row names; raises UserError if it names none."""
        name = row.get("label")
        if name is None:
            raise UserError(f"{self.place}: {row.where}: the label is empty")
        label = canonical_label(name, class_names)
        if label is None:
            raise UserError(
                f"{self.place}: {row.where}: the label {name!r} is none of "
                f"{', '.join(class_names)}; name your own classes with --classes"
            )
        return label

    def choice(self, row: Row, column: str, choices: Sequence[str]) -> str | None:
        """Return a cell that is one of some words, in any case; raises UserError if not."""
        value = row.get(column)
        if value is None:
            return None
        for known in choices:
            if value.lower() == known.lower():
                return known
        raise UserError(
            f"{self.place}: {row.where}: unknown {column} {value!r}; it is one of "
            f"{', '.join(choices)}"
        )

    def count(self, row: Row, column: str) -> int | None:
        """Return a cell that is a whole number from 0; raises UserError if it is not."""
        value = row.get(column)
        if value is None:
            return None
        number = value.removesuffix(".0")  # whole numbers beside gaps, as pandas writes them
        if not (number.isascii() and number.isdigit() and int(number) < 2**15):
            raise UserError(
                f"{self.place}: {row.where}: {column} {value!r} is no whole number from 0"
            )
        return int(number)


def read_table(uri: str) -> Table:
    """Read a CSV (UTF-8, commas, a header) or a `.parquet` file.

    Raises:
        UserError: not there, unreadable, empty, or a row with too few or too many cells.

    """
    try:
        data = fetch(uri)
    except OSError as error:
        raise UserError(
            f"{shown(uri)}: cannot be read: {error.strerror or type(error).__name__}"
        ) from None
    except ImageError as error:
        raise UserError(f"{shown(uri)}: {error}") from None
    is_parquet = uri.partition("?")[0].lower().endswith(".parquet")
    table = _read_parquet(shown(uri), data) if is_parquet else _read_csv(shown(uri), data)
    if not table.rows:
        raise UserError(f"{table.place}: no rows")
    return table


def _read_csv(place: str, data: bytes) -> Table:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{place}: line {line}: not UTF-8; save it as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(c.strip() for c in cells)]
    except csv.Error as error:
        raise UserError(f"{place}: line {reader.line_num}: not valid CSV: {error}") from None
    if not lines:
        raise UserError(f"{place}: empty; its first line names the columns")
    columns = _columns(place, lines[0][1])
    return Table(place, columns, tuple(_csv_rows(place, columns, lines[1:])))


def _csv_rows(
    place: str, columns: tuple[str, ...], lines: list[tuple[int, list[str]]]
) -> Iterator[Row]:
    for line, cells in lines:
        if len(cells) != len(columns):
            raise UserError(f"{place}: line {line}: {len(cells)} cells, but {len(columns)} columns")
        values = (cell.strip() for cell in cells)
        yield Row(f"line {line}", dict(zip(columns, values, strict=True)))


def _read_parquet(place: str, data: bytes) -> Table:
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{place}: not valid Parquet: {str(error).splitlines()[0]}") from None
    columns = _columns(place, table.column_names)
    texts = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in table]
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*texts, strict=True)]
    return Table(place, columns, tuple(Row(f"row {n}", row) for n, row in enumerate(rows, 1)))


def _columns(place: str, names: Sequence[str]) -> tuple[str, ...]:
    columns = tuple(name.strip().lower() for name in names)
    doubled = {name for name in columns if columns.count(name) > 1}
    if doubled:
        raise UserError(f"{place}: the column {min(doubled)!r} is there twice")
    return columns
