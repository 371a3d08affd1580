"""Ray Data at work: read the Parquet, decode once into the object store, batch from there.

The decoded uint8 squares of a run live as Arrow blocks in Ray's object store (which spills
to disk), shared by all training workers of a node without a copy. Which rows form a batch
is a pure function of (seed, epoch, step): a permutation of all training rows, cut into
global batches, each cut over the ranks. So no row is dropped or doubled by the split, one
worker and many see the same global batches, and an epoch starts at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data.expressions import col
from ray.exceptions import RayTaskError

from btray.cluster import usable_cores
from btray.config import AugmentConfig, ImageConfig
from btray.core.augment import augment, batch_generator
from btray.core.images import ImageError, decode
from btray.core.preprocess import normalise, to_square, to_unit
from btray.data.context import data_context
from btray.data.dataset import ROWS, Dataset
from btray.errors import UserError

_ROWS_PER_TASK: Final = 128

Blocks = list["ray.ObjectRef[pa.Table]"]


def decoded(dataset: Dataset, splits: Sequence[str], image: ImageConfig) -> ray.data.Dataset:
    """Return a lazy Ray data set of some splits' decoded rows, in stored order.

    Columns: `square` (size x size bytes), `label`, `split` and `sha256` (text). To be made
    and consumed inside `readable`.
    """
    rows = ray.data.read_parquet(
        f"{dataset.path}/{ROWS}",
        filesystem=dataset.filesystem,
        override_num_blocks=_blocks(dataset.manifest.rows),
    )
    wanted = rows.filter(expr=col("split").is_in(list(splits)))
    return wanted.select_columns(["image", "label", "split", "sha256"]).map_batches(
        _decode_table,  # type: ignore[arg-type]  # a batch is an Arrow table here
        batch_format="pyarrow",
        fn_kwargs={"image": image},
    )


def _blocks(rows: int) -> int:
    """Return into how many tasks reading is cut: enough for all cores, none too small."""
    return max(1, min(rows // _ROWS_PER_TASK, 4 * usable_cores()))


def decode_rows(dataset: Dataset, splits: Sequence[str], image: ImageConfig) -> Blocks:
    """Decode the rows of some splits now; return their blocks, in stored order.

    Raises:
        UserError: rows missing or damaged.

    """
    with readable(dataset):
        blocks: Blocks = decoded(dataset, splits, image).materialize().to_arrow_refs()
    return blocks


@contextmanager
def readable(dataset: Dataset) -> Iterator[None]:
    """Run Ray Data quietly, and turn what it says of missing or damaged rows into one line.

    Raises:
        UserError: rows missing or damaged.

    """
    try:
        with data_context():
            yield
    except (OSError, pa.ArrowInvalid, UserError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        reason = str(cause).strip().splitlines()[0]
        raise UserError(
            f"{dataset.uri}: its rows are missing or damaged ({reason}); import it again"
        ) from None


def _decode_table(table: pa.Table, image: ImageConfig) -> pa.Table:
    torch.set_num_threads(1)
    squares = [
        _decode_row(data, sha, image)
        for data, sha in zip(table["image"].to_pylist(), table["sha256"].to_pylist(), strict=True)
    ]
    column = pa.array(squares, type=pa.binary(image.size * image.size))
    return table.drop_columns("image").append_column("square", column)


def _decode_row(data: bytes, sha: str, image: ImageConfig) -> bytes:
    try:
        return to_square(decode(data), image).tobytes()
    except ImageError as error:
        raise UserError(f"row with sha256 {sha}: {error}") from None


@dataclass
class Rows:
    """Decoded rows in shared memory; nothing is copied until a batch is gathered."""

    squares: list[NDArray[np.uint8]]
    """One array [rows, size, size] a block, a view of the object store."""
    labels: NDArray[np.int64]
    """Class indices [rows]."""
    splits: NDArray[np.str_]
    """Split names [rows]."""
    starts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        lengths = [len(block) for block in self.squares]
        self.starts = np.cumsum([0, *lengths[:-1]])

    @classmethod
    def fetch(cls, blocks: Blocks, class_names: tuple[str, ...], size: int) -> "Rows":
        """Map the blocks into this process."""
        tables = [table for table in ray.get(blocks) if len(table)]
        index = {name: number for number, name in enumerate(class_names)}
        labels = [index[label] for table in tables for label in table["label"].to_pylist()]
        splits = [split for table in tables for split in table["split"].to_pylist()]
        chunks = [chunk for table in tables for chunk in table["square"].chunks if len(chunk)]
        squares = [pixels(chunk, size) for chunk in chunks]
        return cls(squares, np.array(labels, dtype=np.int64), np.array(splits))

    def indices(self, split: str) -> NDArray[np.int64]:
        """Return the positions of one split's rows, in stored order."""
        return np.flatnonzero(self.splits == split)

    def gather(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy rows together: uint8 [batch, size, size] and int64 labels [batch]."""
        block = np.searchsorted(self.starts, rows, side="right") - 1
        offset = rows - self.starts[block]
        squares = np.stack([self.squares[b][o] for b, o in zip(block, offset, strict=True)])
        return torch.from_numpy(squares), torch.from_numpy(self.labels[rows])


def pixels(chunk: pa.FixedSizeBinaryArray, size: int) -> NDArray[np.uint8]:
    """See a column of fixed-size bytes as pixels [rows, size, size] without a copy."""
    values = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
    area = size * size
    return values[chunk.offset * area : (chunk.offset + len(chunk)) * area].reshape(-1, size, size)


@dataclass(frozen=True)
class Shard:
    """What one training worker reads."""

    rows: Rows
    image: ImageConfig
    augment: AugmentConfig
    seed: int
    rank: int
    world_size: int
    device: torch.device

    def steps(self, batch_size: int) -> int:
        """Return the optimiser steps of an epoch; the tail of the order is left out."""
        return len(self.rows.indices("train")) // batch_size

    def training(self, epoch: int, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield this rank's augmented, normalised share of every global batch."""
        order = epoch_order(self.rows.indices("train"), self.seed, epoch)
        share = batch_size // self.world_size
        for step in range(self.steps(batch_size)):
            start = step * batch_size + self.rank * share
            squares, labels = self.rows.gather(order[start : start + share])
            images = to_unit(squares.to(self.device))
            draws = batch_generator(self.seed, epoch, self.rank, step)
            images = augment(images, self.augment, draws)
            yield normalise(images, self.image), labels.to(self.device)

    def evaluation(self, split: str, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield this rank's rows of a split as they are: every `world_size`-th one."""
        mine = self.rows.indices(split)[self.rank :: self.world_size]
        for start in range(0, len(mine), batch_size):
            squares, _ = self.rows.gather(mine[start : start + batch_size])
            yield normalise(to_unit(squares.to(self.device)), self.image)


def epoch_order(rows: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the rows in an epoch's order: a permutation drawn from (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(rows)
