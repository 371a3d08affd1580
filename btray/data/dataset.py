"""The Parquet data set: its schema, its manifest, and opening one."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Self

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.fs
from pydantic import ValidationError

from btray.config import Section
from btray.core import files
from btray.data.folds import splits_of_fold
from btray.errors import UserError

SCHEMA_VERSION: Final = 2
MANIFEST: Final = "manifest.json"
QUARANTINE: Final = "quarantine.jsonl"
ROWS: Final = "rows"
SPLITS: Final = ("train", "validation", "test")
EXCLUDED: Final = "excluded"
"""The split of rows kept on record but never used: twins of test rows found in train."""

SCHEMA: Final = pa.schema(
    [
        ("image", pa.binary()),  # encoded bytes exactly as they came
        ("label", pa.string()),
        ("split", pa.string()),
        ("official_split", pa.string()),  # the source's own; null where it has none
        ("fold", pa.int16()),  # 0..k-1; null outside cross-validation
        ("patient_id", pa.string()),  # a pseudonym; null where unknown
        ("study_id", pa.string()),  # a pseudonym; null where unknown
        ("series_id", pa.string()),  # a pseudonym; null where unknown
        ("group_id", pa.string()),  # rows of one group never stand in two splits
        ("sha256", pa.string()),  # of the encoded bytes
        ("pixel_sha256", pa.string()),  # of height, width and the decoded grey pixels
        ("phash", pa.string()),  # 64-bit perceptual hash, hexadecimal
        ("height", pa.int32()),  # pixels
        ("width", pa.int32()),  # pixels
        ("mode", pa.string()),  # colour mode as stored: L, RGB …
        ("source", pa.string()),  # path relative to the source's root
        ("plane", pa.string()),  # axial, coronal, sagittal; null where unknown
        ("sequence", pa.string()),  # T1, T1ce, T2, FLAIR; null where unknown
        ("field_strength", pa.float32()),  # tesla; null where unknown
        ("vendor", pa.string()),  # of the scanner; null where unknown
        ("sex", pa.string()),  # F, M or O; null where unknown
        ("age", pa.int16()),  # years, 90 for all above; null where unknown
        ("mask", pa.binary()),  # PNG [height, width], above 0 in the tumour; null where unknown
    ]
)


class SplitRecord(Section):
    """How the rows were assigned to splits."""

    seed: int
    """Seed of the assignment."""
    fractions: dict[str, float]
    """Share of the rows asked for, a split."""
    official_test: bool
    """Whether the source brought a test split of its own, which was kept."""
    folds: int = 0
    """Folds for cross-validation; 0 for none."""
    official_folds: bool = False
    """Whether the folds are the source's own."""
    out_of_folds: int = 0
    """Rows taken out of the source's own folds: their twins stand in another one."""
    assignment_hash: str
    """SHA-256 over (sha256, split, fold) of the sorted rows."""


class Manifest(Section):
    """`manifest.json`: what a data set holds, written last."""

    schema_version: int
    """Version of the layout and the columns."""
    btray_version: str
    """Version of btray that wrote it."""
    class_names: tuple[str, ...]
    """Class names in index order."""
    rows: int
    """Rows over all splits, excluded ones too."""
    counts: dict[str, dict[str, int]]
    """Rows by split and class."""
    quarantined: int
    """Files of the source that are not in the data set; listed in quarantine.jsonl."""
    exact_duplicates: dict[str, int]
    """`groups` of pixel-identical rows and the `images` in them."""
    near_duplicates: dict[str, int]
    """`groups` of near-identical rows (exact ones included) and the `images` in them."""
    label_conflicts: int
    """Groups of pixel-identical rows with more than one label."""
    split: SplitRecord
    """How the rows were assigned to splits."""
    source: str
    """Kind of source, such as `imagefolder` or `phantom`; no path."""
    source_hash: str
    """SHA-256 of the source's file names and bytes and the import's settings."""
    content_hash: str
    """SHA-256 over (sha256, label, split, group_id) of the sorted rows."""


@dataclass(frozen=True)
class Dataset:
    """An opened data set: where it is and its manifest."""

    uri: str
    filesystem: pyarrow.fs.FileSystem
    path: str
    manifest: Manifest
    fold: int | None = None
    """The fold seen as validation, all others being train; None: the splits as stored."""

    @classmethod
    def open(cls, uri: str) -> Self:
        """Read the manifest of a data set in a folder or at a URI.

        Raises:
            UserError: nothing there, half written, damaged, or of a newer schema.

        """
        filesystem, path = files.resolve(uri)
        try:
            text = files.read(files.join(uri, MANIFEST))
        except FileNotFoundError:
            why = f"no {MANIFEST}" if files.exists(uri) else "nothing is there"
            raise UserError(
                f"{uri}: no btray data set ({why}); make one with `btray data import`"
            ) from None
        return cls(uri, filesystem, path, _parse_manifest(uri, text))

    def with_fold(self, fold: int) -> Self:
        """See a fold as the validation split and all other folds as train; test stays test.

        Raises:
            UserError: no such fold, or rows missing or damaged.

        """
        folds = self.manifest.split.folds
        if not 0 <= fold < folds:
            raise UserError(
                f"{self.uri}: no fold {fold}: {_has_folds(folds)}; make folds with "
                f"`btray data split {self.uri} --folds K --out DIR`"
            )
        seen = replace(self, fold=fold)
        counts: dict[str, dict[str, int]] = {}
        for row in (
            seen.table(["split", "label"])
            .group_by(["split", "label"])
            .aggregate([([], "count_all")])
            .to_pylist()
        ):
            counts.setdefault(row["split"], {})[row["label"]] = row["count_all"]
        manifest = self.manifest.model_copy(update={"counts": counts})
        return replace(seen, manifest=manifest)

    def count(self, split: str) -> int:
        """Return the number of rows of one split."""
        return sum(self.manifest.counts.get(split, {}).values())

    def order_hash(self) -> str:
        """Return the SHA-256 of contents, labels and splits of all rows in stored order.

        Raises:
            UserError: rows missing or damaged.

        """
        digest = hashlib.sha256()
        for column in self.table(["sha256", "label", "split"]).columns:
            digest.update("\n".join(column.to_pylist()).encode() + b"\0")
        return digest.hexdigest()

    def table(self, columns: list[str], split: str | None = None) -> pa.Table:
        """Read columns of all rows, or of one split, in stored order.

        Raises:
            UserError: rows missing or damaged.

        """
        if self.fold is not None:
            return self._table_of_fold(columns, split, self.fold)
        wanted = None if split is None else pyarrow.dataset.field("split") == split
        return self._read(columns, wanted)

    def _table_of_fold(self, columns: list[str], split: str | None, fold: int) -> pa.Table:
        table = self._read(list(dict.fromkeys([*columns, "split", "fold"])), None)
        splits = splits_of_fold(table["split"], table["fold"], fold)
        table = table.set_column(table.column_names.index("split"), "split", splits)
        if split is not None:
            table = table.filter(pyarrow.compute.equal(splits, split))
        return table.select(columns)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all columns of all rows, in stored order; raises as `table`."""
        with self._readable():
            yield from self._rows().to_batches()

    def images(self, key: str, values: Sequence[str], column: str = "image") -> dict[str, bytes]:
        """Read encoded images by a column such as `sha256` or `source`; raises as `table`."""
        wanted = pyarrow.dataset.field(key).isin(list(values))
        found = self._read([key, column], wanted).to_pydict()
        return dict(zip(found[key], found[column], strict=True))

    def _read(self, columns: list[str], wanted: pyarrow.dataset.Expression | None) -> pa.Table:
        with self._readable():
            return self._rows().to_table(columns=columns, filter=wanted)

    def _rows(self) -> pyarrow.dataset.Dataset:
        return pyarrow.dataset.dataset(
            f"{self.path}/{ROWS}", schema=SCHEMA, filesystem=self.filesystem, format="parquet"
        )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.uri}/{ROWS}: missing or damaged ({reason}); import the data set again"
            ) from None


def _has_folds(folds: int) -> str:
    return f"it has folds 0 to {folds - 1}" if folds else "it has none"


def _parse_manifest(uri: str, text: bytes) -> Manifest:
    try:
        fields = json.loads(text)
        version = fields["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{uri}/{MANIFEST}: damaged; import the data set again") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{uri}: data set of schema version {version}, this btray reads {SCHEMA_VERSION}; "
            "use the btray that wrote it, or import again"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{uri}/{MANIFEST}: damaged at {where}; import it again") from None
