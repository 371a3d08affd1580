"""Decoded squares in one file on every training node: for sets beyond the cache limit.

Ray Data decodes once; every block goes from the object store of the node that made it to a
writer on each training node, which appends it to a file, and is then released. So at most
the blocks in flight are in memory, whatever the size of the set, and workers gather any rows
of the whole set by number, as they do from the object store.

The files have no name: they vanish with the process that holds them, however it ends, and
no stale one is ever left. Workers open them through `/proc`.
"""

import os
import socket
import tempfile
from collections import deque
from collections.abc import Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.exceptions import ActorUnschedulableError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from btray.cluster import smallest_object_store
from btray.config import Config
from btray.core.files import reason
from btray.data.dataset import Dataset
from btray.data.decoding import check_rows, pixels, readable, streamed
from btray.errors import UserError

_SHARE: Final = 0.3
"""Of the smallest object store, what decoded rows may fill: Ray Data itself, while it decodes,
takes up to half of one, and what does not fit is spilled to disk and read back page by page."""
_BLOCKS_AHEAD: Final = 2
"""Blocks handed to the writers before the oldest must be on disk."""
_LOST: Final = (RayActorError, ActorUnschedulableError)
"""How Ray says that a writer's node or process is gone."""


@dataclass(frozen=True)
class CachedRows:
    """Decoded rows on one node."""

    path: str
    """File of squares, one after another in stored order, that only this node sees."""
    table: pa.Table
    """Columns `label` and `split` of the same rows."""


def fits_in_memory(dataset: Dataset, splits: tuple[str, ...], config: Config) -> bool:
    """Say whether the decoded rows of some splits are within `data.cache_limit`."""
    rows = sum(dataset.count(split) for split in splits)
    return rows * config.image.size**2 <= cache_limit(config)


def cache_limit(config: Config) -> int:
    """Return the most bytes of decoded rows that a run keeps in the object store."""
    if config.data.cache_limit is not None:
        return config.data.cache_limit
    return int(_SHARE * smallest_object_store())


class SquareFile:
    """Reads squares of a file by number; nothing of it stays in this process's memory."""

    def __init__(self, path: str, size: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, PTH123 - kept while it is read
        self._size = size
        # Rows are read in random order: what lies behind one is of no use.
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read rows together: uint8 [rows, size, size]."""
        squares = np.empty((len(rows), self._size, self._size), dtype=np.uint8)
        for square, row in zip(squares, rows.tolist(), strict=True):
            found = os.preadv(self._file.fileno(), [square.data], row * square.nbytes)
            if found != square.nbytes:
                raise RuntimeError(f"the cache ends at row {row}")
        return squares


@ray.remote(num_cpus=0)
class CacheWriter:
    """Holds and fills the file of one node."""

    def reserve(self, folder: str | None, size: int, rows: int) -> str:
        """Make a file with room for all rows; return the name it can be opened by.

        Raises:
            UserError: the folder cannot be written, or is too small.

        """
        place = folder or tempfile.gettempdir()
        self._size = size
        self._place = f"data.cache_dir {place} on {socket.gethostname()}"
        try:
            self._file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115 - until this process ends
            os.posix_fallocate(self._file.fileno(), 0, rows * size * size)
        except OSError as error:
            raise UserError(
                f"{self._place}: cannot hold {rows:,} decoded images "
                f"({rows * size * size / 2**30:.1f} GiB): {reason(error)}; free space there or "
                "set data.cache_dir to another folder"
            ) from None
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    def write(self, block: pa.Table, first: int) -> pa.Table:
        """Store a block's squares from row `first` on; return its other columns."""
        try:
            self._file.seek(first * self._size**2)
            for chunk in block["square"].chunks:
                self._file.write(pixels(chunk, self._size).data)
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self._place}: cannot be written: {reason(error)}") from None
        return block.select(["label", "split"])

    def alive(self) -> bool:
        """Answer, as long as this process and its node do."""
        return True


class NodeCaches:
    """The caches of a run, made where its training workers are; lives in the driver."""

    def __init__(self, dataset: Dataset, splits: tuple[str, ...], config: Config) -> None:
        self._dataset, self._splits, self._config = dataset, splits, config
        self._total = sum(dataset.count(split) for split in splits)
        self._writers: dict[str, Any] = {}
        self._rows: dict[str, CachedRows] = {}

    def serve(self, nodes: Collection[str]) -> dict[str, CachedRows]:
        """Return the rows on some nodes, decoding the set again for those without.

        A node that is lost meanwhile is left out.

        Raises:
            UserError: rows missing or damaged, or no room for them on a node.

        """
        for node in list(self._writers):
            if not _answers(self._writers[node]):
                self._drop(node)
        lacking = set(nodes) - self._rows.keys()
        if lacking:
            self._fill(lacking)
        return {node: self._rows[node] for node in nodes if node in self._rows}

    def close(self) -> None:
        """End the writers and with them the files."""
        for node in list(self._writers):
            ray.kill(self._writers[node])
            self._drop(node)

    def _drop(self, node: str) -> None:
        self._writers.pop(node, None)
        self._rows.pop(node, None)

    def _fill(self, nodes: set[str]) -> None:
        for node in nodes:
            on_node = NodeAffinitySchedulingStrategy(node, soft=False)
            writer = CacheWriter.options(scheduling_strategy=on_node)  # type: ignore[attr-defined]
            self._writers[node] = writer.remote()
        folder, size = self._config.data.cache_dir, self._config.image.size
        paths = self._collect(
            {node: self._writers[node].reserve.remote(folder, size, self._total) for node in nodes}
        )
        table = self._stream(paths.keys())
        for node in paths.keys() & self._writers.keys():
            self._rows[node] = CachedRows(paths[node], table)

    def _stream(self, nodes: Iterable[str]) -> pa.Table:
        """Decode all rows to some nodes' files; return their other columns."""
        pending: deque[dict[str, Any]] = deque()
        tables: list[pa.Table] = []
        row = 0
        with closing(streamed(self._dataset, self._splits, self._config)) as blocks:
            for block, count in blocks:
                writers = [(node, self._writers[node]) for node in nodes if node in self._writers]
                if not writers:
                    return pa.table({})  # with their nodes, all that waited are gone
                if row + count <= self._total:
                    pending.append({n: w.write.remote(block, row) for n, w in writers})
                row += count
                del block  # the writers' tasks alone hold it now
                if len(pending) > _BLOCKS_AHEAD:
                    tables += list(self._collect(pending.popleft()).values())[:1]
        for written in pending:
            tables += list(self._collect(written).values())[:1]
        with readable(self._dataset):
            check_rows(self._dataset, self._splits, row)
        return pa.concat_tables(tables).combine_chunks() if tables else pa.table({})

    def _collect(self, answers: dict[str, Any]) -> dict[str, Any]:
        """Wait for every node's answer; drop the nodes that are lost."""
        found = {}
        for node, answer in answers.items():
            try:
                found[node] = ray.get(answer)
            except _LOST:
                self._drop(node)
            except RayTaskError as error:
                # Without the writer's traceback, when it is a person's to mend.
                raise (error.cause if isinstance(error.cause, UserError) else error) from None
        return found


def _answers(writer: Any) -> bool:  # noqa: ANN401 - a Ray actor handle
    try:
        return bool(ray.get(writer.alive.remote()))
    except _LOST:
        return False
