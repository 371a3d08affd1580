"""Ray Data reads the Parquet and decodes it, once, to uint8 squares.

Torch is not loaded here, nor in the tasks: that would double the start-up of a run.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from ray.data import TaskPoolStrategy
from ray.data.expressions import col
from ray.exceptions import RayTaskError

from btray.cluster import usable_cores
from btray.config import Config, ImageConfig
from btray.core.images import ImageError
from btray.core.prepare import prepare
from btray.data.context import data_context
from btray.data.dataset import ROWS, Dataset
from btray.data.folds import IN_FOLDS, splits_of_fold
from btray.errors import UserError

_ROWS_PER_TASK: Final = 512
_BYTES_PER_TASK: Final = 96 * 1024 * 1024
"""Squares one task decodes at most, about."""
_TASKS_PER_PROCESS: Final = 4
"""At least, for balance. Small tasks spend their time in Ray Data's scheduling: with 64 of
16 MiB, two processes were at work for 42 % of it."""
_ROWS_PER_PROCESS: Final = 5000
_BYTES_IN_FLIGHT: Final = 128 * 1024 * 1024
"""What streamed decoding may have in the object store for each of its processes."""

Blocks = list[ray.ObjectRef[Any]]
"""References of Arrow tables."""


def decoded(
    dataset: Dataset,
    splits: Sequence[str],
    image: ImageConfig,
    processes: int,
    node_labels: Mapping[str, str] | None = None,
    blocks: int = 1,
) -> ray.data.Dataset:
    """Return a lazy Ray data set of some splits' decoded rows, in stored order.

    Columns: `square` (size x size bytes), `label`, `split` and `sha256` (text). To be made
    and consumed inside `readable`. Only nodes with all of `node_labels` read and decode. There are
    at least so many `blocks`, for what is done with them.
    """
    # Said of every step, so that Ray Data makes one task of them.
    where: dict[str, Any] = {"label_selector": dict(node_labels)} if node_labels else {}
    blocks = max(
        blocks,
        min(tasks(dataset), processes * _TASKS_PER_PROCESS),
        dataset.manifest.rows * image.size**2 // _BYTES_PER_TASK,
    )
    processes = min(processes, blocks)
    pool = TaskPoolStrategy(size=processes)
    rows = ray.data.read_parquet(
        f"{dataset.path}/{ROWS}",
        filesystem=dataset.filesystem,
        override_num_blocks=blocks,
        concurrency=processes,
        **where,
    )
    stored = list(splits) if dataset.fold is None else list({*splits, *IN_FOLDS})
    wanted = rows.filter(expr=col("split").is_in(stored), compute=pool, **where)
    columns = ["image", "label", "split", "sha256"]
    columns += [] if dataset.fold is None else ["fold"]
    return wanted.select_columns(columns, compute=pool, **where).map_batches(
        _decode_table,  # type: ignore[arg-type]  # a batch is an Arrow table here
        batch_format="pyarrow",
        fn_kwargs={"image": image, "fold": dataset.fold, "splits": list(splits)},
        compute=pool,
        **where,
    )


def tasks(dataset: Dataset) -> int:
    """Return into how many tasks what is more work than to decode is cut."""
    return max(1, dataset.manifest.rows // _ROWS_PER_TASK)


def _processes(dataset: Dataset) -> int:
    """Return how many processes decode beside the start of a run.

    One is done with a few thousand rows before the training workers are up; more would
    only take the cores they start on.
    """
    return max(1, min(usable_cores(), dataset.manifest.rows // _ROWS_PER_PROCESS))


def decode_rows(
    dataset: Dataset,
    splits: Sequence[str],
    image: ImageConfig,
    node_labels: Mapping[str, str] | None = None,
) -> Blocks:
    """Decode the rows of some splits now; return their blocks, in stored order.

    Raises:
        UserError: rows missing or damaged.

    """
    with readable(dataset):
        rows = decoded(dataset, splits, image, _processes(dataset), node_labels).materialize()
        check_rows(dataset, splits, rows.count())
        blocks: Blocks = rows.to_arrow_refs()
    return blocks


def streamed(
    dataset: Dataset, splits: Sequence[str], config: Config
) -> Generator[tuple["ray.ObjectRef[pa.Table]", int], None, None]:
    """Yield decoded blocks and their rows, in stored order, as fast as they are taken.

    Ray Data decodes no further ahead than a bound on the object store allows, which does
    not grow with the data set.

    Raises:
        UserError: damaged rows. How many there are is for the caller to check.

    """
    processes = usable_cores()
    with readable(dataset, processes * _BYTES_IN_FLIGHT):
        rows = decoded(dataset, splits, config.image, processes, config.data.node_labels)
        for bundle in rows.iter_internal_ref_bundles():
            for block in bundle.blocks:
                yield block.ref, block.metadata.num_rows or 0


def pixels(chunk: pa.FixedSizeBinaryArray, size: int) -> NDArray[np.uint8]:
    """See a column of fixed-size bytes as pixels [rows, size, size] without a copy."""
    values = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
    area = size * size
    return values[chunk.offset * area : (chunk.offset + len(chunk)) * area].reshape(-1, size, size)


def check_rows(dataset: Dataset, splits: Sequence[str], found: int) -> None:
    """Raise UserError unless so many rows of some splits are what the manifest counts."""
    expected = sum(dataset.count(split) for split in splits)
    if found != expected:
        raise UserError(f"{found} rows of {expected}")


@contextmanager
def readable(dataset: Dataset, in_flight: int | None = None) -> Iterator[None]:
    """Run Ray Data quietly, and turn what it says of missing or damaged rows into one line.

    `in_flight` bounds the bytes it keeps in the object store; None leaves that to Ray Data.

    Raises:
        UserError: rows missing or damaged.

    """
    try:
        with data_context(in_flight):
            yield
    except (OSError, pa.ArrowInvalid, UserError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        reason = str(cause).strip().splitlines()[0]
        raise UserError(
            f"{dataset.uri}: its rows are missing or damaged ({reason}); import it again"
        ) from None


def _decode_table(
    table: pa.Table, image: ImageConfig, fold: int | None = None, splits: Sequence[str] = ()
) -> pa.Table:
    if fold is not None:
        table = _seen_with_fold(table, fold, splits)
    squares = np.empty((table.num_rows, image.size, image.size), dtype=np.uint8)
    rows = zip(table["image"].to_pylist(), table["sha256"].to_pylist(), strict=True)
    for square, (data, sha) in zip(squares, rows, strict=True):
        square[:] = _decode_row(data, sha, image)
    kind = pa.binary(image.size * image.size)
    column = pa.Array.from_buffers(kind, len(squares), [None, pa.py_buffer(squares)])
    return table.drop_columns("image").append_column("square", column)


def _seen_with_fold(table: pa.Table, fold: int, splits: Sequence[str]) -> pa.Table:
    """Keep the rows that stand in some splits when a fold is validation."""
    seen = splits_of_fold(table["split"], table["fold"], fold)
    table = table.drop_columns(["split", "fold"]).append_column("split", seen)
    return table.filter(pc.is_in(seen, pa.array(list(splits))))


def _decode_row(data: bytes, sha: str, image: ImageConfig) -> NDArray[np.uint8]:
    try:
        return prepare(data, image)
    except ImageError as error:
        raise UserError(f"row with sha256 {sha}: {error}") from None
