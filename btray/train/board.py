"""Where workers, driver and controller meet: decoded blocks in, progress out."""

import asyncio
from typing import Any, TypedDict

import ray


class Update(TypedDict, total=False):
    """One line of news from the rank-0 worker."""

    kind: str
    """`attempt`, `step`, `epoch` or `diverged`."""
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
        self._ready = asyncio.Event()
        self._blocks: list[Any] = []
        self._updates: list[Update] = []
        self._refusal: str | None = None

    async def offer(self, blocks: list[Any]) -> None:
        """Hand over the references of the decoded blocks."""
        self._blocks = blocks
        self._ready.set()

    async def refuse(self, reason: str) -> None:
        """Say that there will be no blocks."""
        self._refusal = reason
        self._ready.set()

    async def blocks(self) -> list[Any]:
        """Wait until the blocks are decoded; return their references.

        Raises:
            RuntimeError: decoding failed.

        """
        await self._ready.wait()
        if self._refusal is not None:
            raise RuntimeError(self._refusal)
        return self._blocks

    async def post(self, update: Update) -> None:
        """Add a piece of news."""
        self._updates.append(update)

    async def since(self, seen: int) -> list[Update]:
        """Return the news after the first `seen` pieces."""
        return self._updates[seen:]
