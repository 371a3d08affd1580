"""A table that names every image with its label: `path,label[,patient_id][,split] …`."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from btray.core import files
from btray.core.dicom import OLDEST
from btray.core.images import ImageError
from btray.core.labels import CLASS_NAMES
from btray.core.pseudonyms import Pseudonyms
from btray.data.sources.base import Item, Listing, Record, checked_listing, without_patient
from btray.data.sources.labels import split_of
from btray.data.sources.tables import Row, Table, read_table
from btray.data.sources.tree import content_hash, fetch, printable, shown
from btray.errors import UserError

PLANES: Final = ("axial", "coronal", "sagittal")
SEQUENCES: Final = ("T1", "T1ce", "T2", "FLAIR")
SEXES: Final = ("F", "M", "O")
_COLUMNS: Final = (
    "path",
    "label",
    "patient_id",
    "split",
    "fold",
    "plane",
    "sequence",
    "sex",
    "age",
)
_THREADS: Final = 8


@dataclass(frozen=True)
class ManifestTable:
    """A CSV or Parquet table of images, in a folder or a bucket."""

    root: str
    """The table: an absolute path or a URI. Paths in it are relative to its folder."""
    pseudonyms: Pseudonyms = field(repr=False)
    class_names: tuple[str, ...] = CLASS_NAMES
    """The classes a label may name."""
    kind: str = "manifest"

    @property
    def place(self) -> str:
        """The table."""
        return shown(self.root)

    def listing(self) -> Listing:
        """Read the table; whether its images are there is found out when they are read.

        Raises:
            UserError: an unusable table: column missing or unknown, label of no known
                class, unknown split, a path that is empty or there twice, a ragged row.

        """
        table = read_table(self.root)
        table.require("path", "label")
        unknown = [column for column in table.columns if column not in _COLUMNS]
        if unknown:
            raise UserError(
                f"{table.place}: unknown column {unknown[0]!r}; btray reads {', '.join(_COLUMNS)}"
            )
        items: dict[str, Item] = {}
        lines: dict[str, str] = {}
        for row in table.rows:
            item = self._item(table, row)
            if item.name in items:
                raise UserError(
                    f"{table.place}: {row.where}: the same path as on {lines[item.name]}"
                )
            items[item.name], lines[item.name] = item, row.where
        nameless = sum(item.patient_id is None for item in items.values())
        notes = without_patient(nameless, len(items))
        return checked_listing(table.place, items.values(), (), notes)

    def fingerprint(self, items: tuple[Item, ...]) -> str:
        """Hash all that the table says and every file's bytes; the key has no part in it."""
        digest = hashlib.sha256()
        owners: dict[str | None, str] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            hashes = pool.map(content_hash, (self._uri(item) for item in items))
            for item, content in zip(items, hashes, strict=True):
                owner = owners.setdefault(item.patient_id, item.name) if item.patient_id else None
                said = (item.name, item.label, item.split, item.fold, item.plane, item.sequence)
                fields = (*said, item.sex, item.age, owner, content)
                digest.update("\0".join(map(str, fields)).encode() + b"\n")
        return digest.hexdigest()

    def read(self, item: Item) -> Iterator[Record]:
        """Yield the image of one row; raises OSError and ImageError."""
        if item.label is None:
            raise ValueError(f"{item.name}: a row of the table has a label")
        try:
            data = fetch(self._uri(item))
        except FileNotFoundError:
            raise ImageError("missing", "there is no such file") from None
        yield Record(
            name=item.name,
            data=data,
            label=item.label,
            split=item.split,
            fold=item.fold,
            patient_id=item.patient_id,
            plane=item.plane,
            sequence=item.sequence,
            sex=item.sex,
            age=item.age,
        )

    def _uri(self, item: Item) -> str:
        path = item.path or item.name
        if "://" in path or Path(path).is_absolute():
            return path
        return files.join(files.split(self.root)[0], path)

    def _item(self, table: Table, row: Row) -> Item:
        path = row.get("path")
        if path is None or "\0" in path:
            raise UserError(f"{table.place}: {row.where}: the path is empty or no path")
        patient, age = row.get("patient_id"), table.count(row, "age")
        return Item(
            name=printable(shown(path)),
            path=path,
            label=table.label(row, self.class_names),
            split=split_of(table, row),
            patient_id=self.pseudonyms("patient", patient) if patient else None,
            fold=table.count(row, "fold"),
            plane=table.choice(row, "plane", PLANES),
            sequence=table.choice(row, "sequence", SEQUENCES),
            sex=table.choice(row, "sex", SEXES),
            age=None if age is None else min(age, OLDEST),
        )
