"""A new assignment to splits and folds for a data set that is there already."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pydantic import Field

from btray.config import Section
from btray.core.files import absolute
from btray.data.dataset import SCHEMA, SPLITS, Dataset, Manifest, SplitRecord
from btray.data.duplicates import people
from btray.data.importer import assignment_hash, content_hash, count_rows, quarantine
from btray.data.splits import assign_folds, assign_splits, check_patients
from btray.data.storage import Destination, staged
from btray.errors import UserError

_COLUMNS: Final = ["sha256", "label", "group_id", "patient_id", "study_id", "official_split"]


class SplitOptions(Section):
    """How rows are assigned to splits."""

    validation: float = 0.15
    """Share of the rows that go to validation; of no matter with folds."""
    test: float = 0.15
    """Share of the rows that go to the test split; with folds it may be 0."""
    folds: int = Field(default=0, ge=0)
    """Folds for cross-validation; 0 for a single holdout."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the assignment."""
    official: bool = True
    """Keep the source's own test and validation splits."""
    exclude_from_train_what_is_in_test: bool = False
    """Exclude from train the patients who also stand in an official test split."""


def resplit(dataset: Dataset, destination: str | None, options: SplitOptions) -> Manifest:
    """Assign the rows of a data set anew, in place or to another destination.

    Raises:
        UserError: impossible splits, or a destination that is not free.

    """
    place = _free(dataset, destination)
    if not destination and dataset.manifest.split.official_folds:
        raise UserError(
            f"{dataset.uri}: the source's own folds would be lost; give --out for the new splits"
        )
    with staged(place) as staging:
        # Read once, so that what is assigned is what is written, whoever else writes here.
        spool = staging.scratch / "rows.arrow"
        before, rejected = Dataset.open(dataset.uri).manifest, quarantine(dataset)
        _spool(dataset, spool)
        with pa.memory_map(str(spool)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
            if table.num_rows != before.rows:
                raise UserError(f"{dataset.uri}: another import replaces it; run this again")
            rows = table.select(_COLUMNS).to_pydict()
            splits, folds = assign(dataset.uri, rows, options)
            for name, values in (("split", splits), ("fold", folds)):
                index = SCHEMA.get_field_index(name)
                column = pa.array(values, type=SCHEMA.field(name).type)
                table = table.set_column(index, SCHEMA.field(name), column)
            manifest = _manifest(before, rows, splits, folds, options)
            staging.write_rows(table)
        staging.write_quarantine(rejected)
        staging.write_manifest(manifest)
    return manifest


def _free(dataset: Dataset, destination: str | None) -> Destination:
    place = Destination.parse(destination or dataset.uri)
    if destination and absolute(destination) != absolute(dataset.uri):
        if place.existing():
            raise UserError(f"{destination}: holds a data set already; choose another destination")
        folder, inner = (os.path.realpath(uri) for uri in (dataset.path, place.path))
        if place.local and os.path.commonpath((folder, inner)) == folder:
            raise UserError(f"{destination}: lies inside {dataset.uri}; choose another destination")
    elif not place.local:
        # It would be gone for a while, and for good if that were interrupted.
        raise UserError(f"{dataset.uri}: not replaced in place in a bucket; give --out")
    return place


def assign(
    place: str, rows: dict[str, list[Any]], options: SplitOptions
) -> tuple[list[str], Sequence[int | None]]:
    """Return the split and the fold of each row; raises UserError."""
    labels, groups = rows["label"], rows["group_id"]
    official = rows["official_split"] if options.official else [None] * len(labels)
    if not options.exclude_from_train_what_is_in_test:
        check_patients(place, people(rows["patient_id"], rows["study_id"]), official)
    if options.folds:
        return assign_folds(labels, groups, official, options.test, options.folds, options.seed)
    splits = assign_splits(labels, groups, official, _fractions(options), options.seed)
    return splits, [None] * len(labels)


def _fractions(options: SplitOptions) -> dict[str, float]:
    if options.folds:
        return {"train": round(1 - options.test, 9), "test": options.test}
    shares = (round(1 - options.validation - options.test, 9), options.validation, options.test)
    return dict(zip(SPLITS, shares, strict=True))


def _spool(dataset: Dataset, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in dataset.batches():
            writer.write_batch(batch)


def _manifest(
    before: Manifest,
    rows: dict[str, list[Any]],
    splits: list[str],
    folds: Sequence[int | None],
    options: SplitOptions,
) -> Manifest:
    record = SplitRecord(
        seed=options.seed,
        fractions=_fractions(options),
        official_test=options.official and "test" in rows["official_split"],
        folds=options.folds,
        assignment_hash=assignment_hash(rows["sha256"], splits, folds),
    )
    # An import of the same source must not take this for its own result.
    origin = hashlib.sha256(f"{before.source_hash}\n{options.model_dump_json()}".encode())
    return before.model_copy(
        update={
            "counts": count_rows(splits, rows["label"]),
            "split": record,
            "source_hash": origin.hexdigest(),
            "content_hash": content_hash(rows["sha256"], rows["label"], splits, rows["group_id"]),
        }
    )
