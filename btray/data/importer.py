"""The import: a source becomes one Parquet data set, or nothing at all."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic import Field

from btray.config import Section
from btray.core.labels import CLASS_NAMES
from btray.core.pseudonyms import Pseudonyms
from btray.data import duplicates
from btray.data.dataset import QUARANTINE, SCHEMA, SCHEMA_VERSION, Dataset, Manifest, SplitRecord
from btray.data.duplicates import Duplicates, Measures, find_duplicates
from btray.data.head import FRAME, THUMBNAIL
from btray.data.sources.base import Item, Rejected, Source
from btray.data.splits import assign_splits, check_fractions, check_patients, untorn_folds
from btray.data.storage import Destination, Staging, staged
from btray.errors import UserError
from btray.version import __version__

Progress = Callable[[str, int, int], None]
"""Told the phase, and how many images of how many are done."""
Reader = Callable[[Source, tuple[Item, ...]], Iterator[pa.Table]]
"""Reads items to tables of `btray.data.reading.READ_SCHEMA`, in their order."""

_NOTHING_READ: Final = ("code", "reason")


class ImportOptions(Section):
    """How a source is imported."""

    validation: float = 0.15
    """Share of the rows that go to validation, unless the source has its own."""
    test: float = 0.15
    """Share of the rows that go to the test split, unless the source has its own."""
    seed: int = Field(default=0, ge=0)
    """Seed of the assignment to splits."""
    class_names: tuple[str, ...] = CLASS_NAMES
    """Classes in index order."""
    strict: bool = False
    """Refuse the whole import when a file cannot be used, rather than leave it out."""
    overwrite: bool = False
    """Replace another data set at the destination."""
    exclude_from_train_what_is_in_test: bool = False
    """Leave out of one official split the slices of patients who stand in another, test before
    validation before train, rather than refuse them."""

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the rows by split."""
        train = round(1 - self.validation - self.test, 9)
        return {"train": train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True)
class ImportResult:
    """What an import came to."""

    manifest: Manifest
    unchanged: bool
    """True when this very data set was there already and nothing was done."""
    notes: tuple[str, ...] = ()
    """What the source tells the person, a line each."""


def import_dataset(
    source: Source,
    destination: str,
    options: ImportOptions | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Import a source to a folder or URI and return the manifest; see `run_import`."""
    return run_import(source, destination, options, progress).manifest


def run_import(
    source: Source,
    destination: str,
    options: ImportOptions | None = None,
    progress: Progress | None = None,
    reader: Reader | None = None,
) -> ImportResult:
    """Import a source: read and measure with Ray, group, split, write.

    The same source with the same options gives the same rows in the same order. When
    that data set is at the destination already, nothing is done.

    Raises:
        UserError: an unusable source or destination, impossible splits, or files that
            cannot be used when `strict`; nothing is left at the destination.

    """
    options = options or ImportOptions()
    report = progress or _silent
    check_fractions(options.fractions)
    place = Destination.parse(destination)
    listing = source.listing()
    _refuse_nested(source, place)
    report("hash", 0, listing.images)
    source_hash = _source_hash(source, listing.items, listing.rejected, options)
    unchanged = _already_there(place, source_hash, options)
    if unchanged is not None:
        _refuse_strictly(options, source, unchanged.quarantined, None)
        return ImportResult(unchanged, unchanged=True, notes=listing.notes)
    with staged(place) as staging:
        rejected = list(listing.rejected)
        spool = staging.scratch / "rows.arrow"
        tables = (reader or _ray_reader())(source, listing.items)
        rejected += _spool(tables, spool, listing.images, report)
        rejected.sort(key=lambda entry: entry.path)
        _refuse_strictly(options, source, len(rejected), next(iter(rejected), None))
        with _spooled(spool) as rows:
            manifest = _write(staging, rows, rejected, source, source_hash, options, report)
    return ImportResult(manifest, unchanged=False, notes=listing.notes)


def _write(
    staging: Staging,
    rows: pa.Table,
    rejected: list[Rejected],
    source: Source,
    source_hash: str,
    options: ImportOptions,
    report: Progress,
) -> Manifest:
    if not rows.num_rows:
        first = f"; the first: {rejected[0].path}: {rejected[0].reason}" if rejected else ""
        raise UserError(f"{source.place}: no usable image{first}")
    report("group", 0, rows.num_rows)
    columns = {name: rows[name].to_pylist() for name in rows.column_names if name != "image"}
    persons = duplicates.people(columns["patient_id"], columns["study_id"])
    if not options.exclude_from_train_what_is_in_test:
        check_patients(source.place, persons, columns["split"])
        folds = [None if fold is None else f"fold {fold}" for fold in columns["fold"]]
        check_patients(source.place, persons, folds)
    found = _group(columns, persons)
    splits = assign_splits(
        columns["label"], found.group_id, columns["split"], options.fractions, options.seed
    )
    official_folds = columns["fold"]
    columns["fold"] = untorn_folds(found.group_id, official_folds)
    columns["torn"] = [a != b for a, b in zip(official_folds, columns["fold"], strict=True)]
    manifest = _manifest(columns, found, splits, len(rejected), source, source_hash, options)
    report("write", 0, rows.num_rows)
    final = rows.rename_columns({"split": "official_split"})
    final = final.append_column("split", pa.array(splits))
    number = final.schema.get_field_index("fold")
    final = final.set_column(number, "fold", pa.array(columns["fold"], pa.int16()))
    final = final.append_column("group_id", pa.array(found.group_id))
    staging.write_rows(final.select(SCHEMA.names).cast(SCHEMA))
    staging.write_quarantine(rejected)
    staging.write_manifest(manifest)
    return manifest


def _group(columns: dict[str, list[Any]], persons: list[str | None]) -> Duplicates:
    heads, frames = (
        np.frombuffer(b"".join(columns[name]), dtype=np.uint8).reshape(-1, side, side)
        for name, side in (("thumbnail", THUMBNAIL), ("frame", FRAME))
    )
    measures = Measures(columns["pixel_sha256"], heads, frames)
    return find_duplicates(measures, persons)


def _manifest(
    columns: dict[str, list[Any]],
    found: Duplicates,
    splits: list[str],
    quarantined: int,
    source: Source,
    source_hash: str,
    options: ImportOptions,
) -> Manifest:
    labels = columns["label"]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        btray_version=__version__,
        class_names=tuple(name for name in options.class_names if name in set(labels)),
        rows=len(labels),
        counts=count_rows(splits, labels),
        quarantined=quarantined,
        exact_duplicates=duplicates.count_groups(found.exact),
        near_duplicates=duplicates.count_groups(found.near),
        label_conflicts=duplicates.count_conflicts(found.exact, labels),
        split=SplitRecord(
            seed=options.seed,
            fractions=options.fractions,
            official_test="test" in columns["split"],
            folds=len(set(columns["fold"]) - {None}),
            out_of_folds=sum(columns["torn"]),
            official_folds=any(fold is not None for fold in columns["fold"]),
            assignment_hash=assignment_hash(columns["sha256"], splits, columns["fold"]),
        ),
        source=source.kind,
        source_hash=source_hash,
        content_hash=content_hash(columns["sha256"], labels, splits, found.group_id),
    )


def count_rows(splits: Sequence[str], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the number of rows by split and label, both sorted."""
    counts: dict[str, Counter[str]] = {}
    for split, label in zip(splits, labels, strict=True):
        counts.setdefault(split, Counter())[label] += 1
    return {split: dict(sorted(counts[split].items())) for split in sorted(counts)}


def content_hash(
    sha256: Sequence[str], labels: Sequence[str], splits: Sequence[str], groups: Sequence[str]
) -> str:
    """Return the SHA-256 over (sha256, label, split, group_id) of the sorted rows."""
    rows = sorted(zip(sha256, labels, splits, groups, strict=True))
    return hashlib.sha256("".join("\0".join(row) + "\n" for row in rows).encode()).hexdigest()


def assignment_hash(
    sha256: Sequence[str], splits: Sequence[str], folds: Sequence[int | None]
) -> str:
    """Return the SHA-256 over (sha256, split, fold) of the sorted rows."""
    rows = sorted(zip(sha256, splits, map(str, folds), strict=True))
    return hashlib.sha256("".join("\0".join(row) + "\n" for row in rows).encode()).hexdigest()


def _source_hash(
    source: Source,
    items: tuple[Item, ...],
    rejected: tuple[Rejected, ...],
    options: ImportOptions,
) -> str:
    pseudonyms: Pseudonyms | None = getattr(source, "pseudonyms", None)
    settings = {
        "schema_version": SCHEMA_VERSION,
        "kind": source.kind,
        "seed": options.seed,
        "class_names": options.class_names,
        "fractions": options.fractions,
        "exclude": options.exclude_from_train_what_is_in_test,
        "near": duplicates.MIN_SIMILARITY,
        "key": pseudonyms.trace if pseudonyms else None,
        "rejected": [[entry.path, entry.code] for entry in rejected],
        "content": source.fingerprint(items),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _already_there(place: Destination, source_hash: str, options: ImportOptions) -> Manifest | None:
    try:
        manifest = place.existing()
    except UserError:
        if options.overwrite and place.replaceable():
            return None
        raise
    if manifest is None or (options.overwrite and not _whole(place, manifest)):
        return None
    if manifest.source_hash == source_hash:
        if not _whole(place, manifest):
            raise UserError(f"{place.uri}: rows are missing or damaged; --overwrite repairs it")
        return manifest
    if options.overwrite:
        return None
    raise UserError(
        f"{place.uri}: holds a data set of another source or other settings; "
        "choose another destination or give --overwrite"
    )


def _whole(place: Destination, manifest: Manifest) -> bool:
    """Say whether the rows a manifest counts are there."""
    try:
        rows: int = Dataset.open(place.uri).table(["split"]).num_rows
    except UserError:
        return False
    return rows == manifest.rows


def _refuse_nested(source: Source, place: Destination) -> None:
    if not place.local or not Path(source.place).is_dir():
        return
    folder = os.path.realpath(source.place)
    if os.path.commonpath((folder, place.path)) in (folder, place.path):
        raise UserError(
            f"{place.uri}: the destination and the source {source.place} lie in one another; "
            "choose a destination outside"
        )


def _refuse_strictly(
    options: ImportOptions, source: Source, count: int, first: Rejected | None
) -> None:
    if options.strict and count:
        where = f"; the first: {first.path}: {first.reason}" if first else ""
        noun = "file" if count == 1 else "files"
        raise UserError(
            f"{source.place}: {count} {noun} cannot be used{where}; mend or remove them, or "
            "import without --strict"
        )


def _spool(tables: Iterator[pa.Table], path: Path, total: int, report: Progress) -> list[Rejected]:
    """Put the usable rows into a local Arrow file; return the refused ones."""
    from btray.data.reading import READ_SCHEMA

    rejected: list[Rejected] = []
    done = 0
    report("read", 0, total)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, READ_SCHEMA) as writer:
        for table in tables:
            refused = table.filter(table["code"].is_valid()).to_pylist()
            rejected += [Rejected(row["source"], row["code"], row["reason"]) for row in refused]
            writer.write_table(table.filter(table["code"].is_null()))
            done += table.num_rows
            report("read", done, total)
    return rejected


@contextmanager
def _spooled(path: Path) -> Iterator[pa.Table]:
    """Map the spooled rows into memory: only what is looked at is read."""
    with pa.memory_map(str(path)) as mapped:
        rows = pa.ipc.open_file(mapped).read_all().drop_columns(list(_NOTHING_READ))
        names = rows["source"].to_pylist()
        if names != sorted(set(names)):
            raise RuntimeError("a source must list its images sorted by unique names")
        yield rows


def _ray_reader() -> Reader:
    from btray.data.reading import read_source

    return read_source


def _silent(phase: str, done: int, total: int) -> None:
    del phase, done, total


def quarantine(dataset: Dataset, limit: int | None = None) -> list[Rejected]:
    """Return the first `limit` entries of a data set's quarantine list, or all."""
    with dataset.filesystem.open_input_stream(f"{dataset.path}/{QUARANTINE}") as stream:
        lines = stream.read().decode().split("\n")[:-1]
    return [Rejected(**json.loads(line)) for line in lines[:limit]]
