"""From decoded blocks to batches.

The decoded uint8 squares of a run live as Arrow blocks in Ray's object store (which spills
to disk), shared by all training workers of a node without a copy. Which rows form a batch
is a pure function of (seed, epoch, step): a permutation of all training rows, cut into
global batches, each cut over the ranks. So no row is dropped or doubled by the split, one
worker and many see the same global batches, and an epoch starts at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from btray.config import AugmentConfig, ImageConfig
from btray.core.augment import augment, batch_generator
from btray.core.tensors import normalise, to_unit
from btray.data.decoding import Blocks


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
