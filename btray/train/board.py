"""Where workers, driver and controller meet: decoded rows in, progress out."""

import asyncio
from typing import Any, TypedDict

import ray


class Update(TypedDict, total=False):
    """One piece of news: from the driver where the run is, all else from the rank-0 worker."""

    kind: str
    """`run`, `changed`, `waiting`, `attempt`, `step`, `epoch`, `diverged` or `stopped`."""
    uri: str
    fold: int
    """Of a cross-validation; absent in other runs."""
    reason: str
    workers: int
    epoch: int
    step: int
    steps: int
    loss: float
    epochs: int
    images_per_second: float
    seconds_left: float
    time: float
    metrics: dict[str, float]


@ray.remote(num_cpus=0)
class Board:
    """An actor that outlives worker groups; it holds references and news, no pixels."""

    def __init__(self, workers: int) -> None:
        self._changed = asyncio.Condition()
        self._closed = self._stopping = False
        self._blocks: list[Any] | None = None
        self._workers = workers
        self._places: dict[int, str] = {}
        self._unanswered = False
        self._cached: dict[str, Any] = {}
        self._updates: list[Update] = []

    async def offer(self, blocks: list[Any]) -> None:
        """Hand over the references of the decoded blocks, for workers on any node."""
        async with self._changed:
            self._blocks = blocks
            self._changed.notify_all()

    async def offer_cached(self, rows: dict[str, Any]) -> None:
        """Hand over the decoded rows of some nodes."""
        async with self._changed:
            self._cached |= rows
            self._changed.notify_all()

    async def close(self) -> None:
        """Let go whoever waits: decoding failed, or the run is over."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def stop(self) -> None:
        """Tell the workers to make a checkpoint and leave."""
        async with self._changed:
            self._stopping = True
            self._changed.notify_all()

    async def stopped(self) -> None:
        """Wait until the run is told to stop."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopping)

    async def rows(self, rank: int, node: str, workers: int) -> Any:  # noqa: ANN401 - either kind
        """Wait for what one of so many workers reads on its node; None: there will be nothing."""
        async with self._changed:
            if workers != self._workers:
                self._workers, self._places = workers, {}
            self._places[rank] = node
            self._cached.pop(node, None)  # to be offered anew: its file may be gone
            self._unanswered = True
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: self._closed or self._blocks is not None or node in self._cached
            )
            return self._cached.get(node) if self._blocks is None else self._blocks

    async def nodes(self) -> set[str]:
        """Wait until all workers of a group have asked for rows; return their nodes.

        Of a group that died half asked, ranks stay until those of the next take their place.
        None are left when the board is closed.
        """
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._closed or (self._unanswered and len(self._places) == self._workers)
            )
            self._unanswered = False
            return set() if self._closed else set(self._places.values())

    async def post(self, update: Update) -> None:
        """Add a piece of news."""
        self._updates.append(update)

    async def since(self, seen: int) -> list[Update]:
        """Return the news after the first `seen` pieces."""
        return self._updates[seen:]
