"""Where workers, driver and controller meet: decoded blocks in, progress out."""

import asyncio
from typing import Any, TypedDict

import ray


class Update(TypedDict, total=False):
    """One piece of news: from the driver where the run is, all else from the rank-0 worker."""

    kind: str
    """`run`, `attempt`, `step`, `epoch` or `diverged`."""
    uri: str
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

    def __init__(self) -> None:
        self._settled = asyncio.Event()
        self._blocks: list[Any] | None = None
        self._updates: list[Update] = []

    async def offer(self, blocks: list[Any] | None) -> None:
        """Hand over the references of the decoded blocks, or None: decoding failed."""
        self._blocks = blocks
        self._settled.set()

    async def blocks(self) -> list[Any] | None:
        """Wait for the decoding's end; return the blocks' references, or None if it failed."""
        await self._settled.wait()
        return self._blocks

    async def post(self, update: Update) -> None:
        """Add a piece of news."""
        self._updates.append(update)

    async def since(self, seen: int) -> list[Update]:
        """Return the news after the first `seen` pieces."""
        return self._updates[seen:]
