"""From decoded blocks to batches.

The decoded uint8 squares of a run live as Arrow blocks in Ray's object store, shared by all
training workers of a node without a copy, or, beyond the cache limit, in a file of the node
(`btray.data.cache`). Which rows form a batch is a pure function of (seed, epoch, step): a
permutation of all training rows, cut into global batches, each cut over the ranks. So no row
is dropped or doubled by the split, one worker and many see the same global batches, wherever
the rows are, an epoch starts at once, and can be gone on with at any step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from btray.config import AugmentConfig, ImageConfig
from btray.core.augment import augment, batch_generator
from btray.core.tensors import normalise, to_unit
from btray.data.cache import CachedRows, SquareFile
from btray.data.decoding import Blocks, pixels


class Squares(Protocol):
    """Decoded images that can be had by number."""

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy some together: uint8 [rows, size, size]."""


class SquareBlocks:
    """Squares in the object store; nothing is copied until they are gathered."""

    def __init__(self, blocks: Sequence[NDArray[np.uint8]]) -> None:
        self._blocks = blocks
        self._starts = np.cumsum([0, *(len(block) for block in blocks[:-1])])

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy rows together: uint8 [rows, size, size]."""
        block = np.searchsorted(self._starts, rows, side="right") - 1
        offset = rows - self._starts[block]
        return np.stack([self._blocks[b][o] for b, o in zip(block, offset, strict=True)])


@dataclass
class Rows:
    """The decoded rows of a run, as a training worker sees them."""

    squares: Squares
    """Their pixels."""
    labels: NDArray[np.int64]
    """Class indices [rows]."""
    splits: NDArray[np.str_]
    """Split names [rows]."""

    @classmethod
    def fetch(cls, source: Blocks | CachedRows, class_names: tuple[str, ...], size: int) -> "Rows":
        """Map the blocks into this process, or open the node's file."""
        if isinstance(source, CachedRows):
            return cls._of(SquareFile(source.path, size), [source.table], class_names)
        tables = [table for table in ray.get(source) if len(table)]
        chunks = [chunk for table in tables for chunk in table["square"].chunks if len(chunk)]
        squares = SquareBlocks([pixels(chunk, size) for chunk in chunks])
        return cls._of(squares, tables, class_names)

    @classmethod
    def _of(cls, squares: Squares, tables: list[pa.Table], class_names: tuple[str, ...]) -> "Rows":
        index = {name: number for number, name in enumerate(class_names)}
        labels = [index[label] for table in tables for label in table["label"].to_pylist()]
        splits = [split for table in tables for split in table["split"].to_pylist()]
        return cls(squares, np.array(labels, dtype=np.int64), np.array(splits))

    def indices(self, *splits: str) -> NDArray[np.int64]:
        """Return the positions of one split's rows, or of several together, in stored order."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def gather(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy rows together: uint8 [batch, size, size] and int64 labels [batch]."""
        return torch.from_numpy(self.squares.gather(rows)), torch.from_numpy(self.labels[rows])


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
    balanced: bool = False
    """Whether training draws every class equally often."""
    learned: tuple[str, ...] = ("train",)
    """Splits that are trained on."""

    def steps(self, batch_size: int) -> int:
        """Return the optimiser steps of an epoch; the tail of the order is left out."""
        return len(self.rows.indices(*self.learned)) // batch_size

    def share(self, batch_size: int) -> slice:
        """Return which rows of a global batch are this rank's; shares differ by one at most."""
        start = batch_size * self.rank // self.world_size
        return slice(start, batch_size * (self.rank + 1) // self.world_size)

    def training(
        self, epoch: int, batch_size: int, start_step: int = 0
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield this rank's augmented, normalised share of every global batch.

        From `start_step` on: the very batches that come there when the epoch is not cut.
        """
        rows = self.rows.indices(*self.learned)
        if self.balanced:
            order = balanced_order(rows, self.rows.labels[rows], self.seed, epoch)
        else:
            order = epoch_order(rows, self.seed, epoch)
        share = self.share(batch_size)
        for step in range(start_step, self.steps(batch_size)):
            batch = order[step * batch_size : (step + 1) * batch_size]
            squares, labels = self.rows.gather(batch[share])
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


def balanced_order(
    rows: NDArray[np.int64], labels: NDArray[np.int64], seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return as many rows in an order in which every class comes equally often.

    Class after class, each from a permutation of its rows that starts anew when it is used up:
    a rare class's rows are repeated, a frequent one's partly left for another epoch.
    """
    generator = np.random.default_rng([seed, epoch])
    classes = [rows[labels == label] for label in np.unique(labels)]
    count = -(-len(rows) // len(classes))
    draws = [
        np.concatenate([generator.permutation(own) for _ in range(-(-count // len(own)))])[:count]
        for own in classes
    ]
    rounds = np.stack(draws, axis=1)
    return generator.permuted(rounds, axis=1).ravel()[: len(rows)]
