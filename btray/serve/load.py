"""A load test of a server: which requests are sent when, and how long each took.

In a closed loop every connection asks again as soon as it is answered. In an open loop requests
come when they come, at the arrivals of a Poisson process, whether or not the server keeps up, and
their latency counts from the arrival: a server that stalls cannot hide how many it kept waiting
(coordinated omission; Tene, "How NOT to measure latency", 2013).
"""

import asyncio
import itertools
import select
import selectors
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from btray.errors import UserError
from btray.serve.load_clients import Client, Connection

TIMEOUT: Final = "timeout"
"""Reason of a request that was given up."""
_PAUSE_S: Final = 0.01
"""Between a failure and the next request of a connection in a closed loop."""
_TICK_S: Final = 0.5


@dataclass(frozen=True)
class Step:
    """Part of an open loop."""

    rate: float
    """Arrivals a second, on average."""
    seconds: float
    """Length."""


@dataclass(frozen=True)
class Plan:
    """What a load test does; times in seconds."""

    connections: int = 32
    """Connections that ask again and again; of an open loop, the most that are open at once."""
    duration: float = 30.0
    """Time that is measured; of an open loop, the sum of its steps."""
    steps: tuple[Step, ...] = ()
    """The open loop; none is a closed loop."""
    warmup: float = 2.0
    """Time before it, at the first step's rate, that is not counted. With 0, no request at all is
    sent before the clock starts, so a cold start is measured."""
    timeout: float = 30.0
    """From the arrival; a request that is not answered by then is given up and is an error."""
    seed: int = 0
    """Of the arrivals."""

    @classmethod
    def open_loop(
        cls,
        steps: Sequence[Step],
        connections: int = 1024,
        warmup: float = 2.0,
        timeout: float = 30.0,
        seed: int = 0,
    ) -> "Plan":
        """Return the plan of an open loop as long as its steps."""
        duration = sum(step.seconds for step in steps)
        return cls(connections, duration, tuple(steps), warmup, timeout, seed)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times in seconds from the start of what is measured, before it negative."""

    due: float
    """When it should have been sent."""
    begun: float
    """When the load test got to it; much later than due is the load test's own delay."""
    ended: float
    """When it was answered or given up."""
    reason: str
    """Why it is an error; empty when it was answered."""

    @property
    def latency(self) -> float:
        """Seconds from when it was due."""
        return self.ended - self.due


def arrivals(plan: Plan) -> NDArray[np.float64]:
    """Return when the requests of an open loop are due, in seconds; the warm-up's are negative."""
    generator, begin = np.random.default_rng(plan.seed), -plan.warmup
    times = []
    for step in (Step(plan.steps[0].rate, plan.warmup), *plan.steps):
        count = generator.poisson(step.rate * step.seconds)
        times.append(np.sort(generator.uniform(begin, begin + step.seconds, count)))
        begin += step.seconds
    return np.concatenate(times)


def run_load(
    client: Client, plan: Plan, report: Callable[[int, int], None] | None = None
) -> list[Sample]:
    """Do a load test and return all its requests, in the order in which they ended.

    With a warm-up, one request goes ahead to see whether there is a server that takes it.

    Args:
        client: asks the server.
        plan: what to send when.
        report: told the seconds done, of all, now and then.

    Raises:
        UserError: nothing listens there, or the server refuses such requests.

    """
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(_run(client, plan, report))


async def _run(
    client: Client, plan: Plan, report: Callable[[int, int], None] | None
) -> list[Sample]:
    connections = [client.connection() for _ in range(plan.connections)]
    try:
        if plan.warmup:
            await _try(client, connections[0], plan.timeout)
        run = _Run(plan, client.images, connections)
        ticking = asyncio.create_task(run.tick(report)) if report else None
        await (run.open_loop() if plan.steps else run.closed_loop())
        if ticking:
            ticking.cancel()
        return run.samples
    finally:
        for connection in connections:
            await connection.close()


async def _try(client: Client, connection: Connection, timeout: float) -> None:
    """Send one request.

    Raises:
        UserError: it will not be answered however often it is sent.

    """
    try:
        async with asyncio.timeout(timeout):
            failure = await connection.ask(0)
    except TimeoutError:
        raise UserError(f"{client.url}: no answer in {timeout:g} s; is it a server?") from None
    if failure is not None and failure.lasting:
        raise UserError(f"{client.url}: {failure.reason}: {failure.message}")


class _Run:
    """A load test under way."""

    def __init__(self, plan: Plan, images: int, connections: list[Connection]) -> None:
        self.plan, self.samples = plan, list[Sample]()
        self._images = itertools.cycle(range(images))
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time() + plan.warmup
        self._idle = asyncio.LifoQueue[Connection]()
        for connection in reversed(connections):
            self._idle.put_nowait(connection)

    @property
    def now(self) -> float:
        """Seconds from the start of what is measured."""
        return self._loop.time() - self._start

    async def closed_loop(self) -> None:
        """Keep every connection asking."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.plan.connections):
                group.create_task(self._ask_on())

    async def open_loop(self) -> None:
        """Ask at the arrivals."""
        async with asyncio.TaskGroup() as group:
            for due in arrivals(self.plan).tolist():
                await asyncio.sleep(max(0.0, due - self.now))
                group.create_task(self._request(due))

    async def tick(self, report: Callable[[int, int], None]) -> None:
        """Tell how far it is."""
        total = self.plan.warmup + self.plan.duration
        while True:
            report(int(min(self.now + self.plan.warmup, total)), int(total))
            await asyncio.sleep(_TICK_S)

    async def _ask_on(self) -> None:
        while self.now < self.plan.duration:
            if not await self._request(self.now):
                await asyncio.sleep(_PAUSE_S)

    async def _request(self, due: float) -> bool:
        """Send one request and write down what became of it; tell whether it was answered."""
        begun = self.now
        try:
            async with asyncio.timeout_at(self._start + due + self.plan.timeout):
                reason = await self._answered()
        except TimeoutError:
            reason = TIMEOUT
        self.samples.append(Sample(due, begun, self.now, reason))
        return not reason

    async def _answered(self) -> str:
        """Ask on a free connection; return why there is no answer, or an empty string."""
        connection = await self._idle.get()
        try:
            failure = await connection.ask(next(self._images))
        finally:
            self._idle.put_nowait(connection)
        return failure.reason if failure else ""


def step_at(plan: Plan, second: float) -> Step | None:
    """Return the step of an open loop that a time, in seconds, is in."""
    for step in plan.steps:
        if second < step.seconds:
            return step
        second -= step.seconds
    return None


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that wakes on time, so that arrivals are not late by a millisecond."""
    return asyncio.SelectorEventLoop(_PreciseSelector() if _HAS_EPOLL else None)


_HAS_EPOLL: Final = hasattr(selectors, "EpollSelector")

if _HAS_EPOLL:

    class _PreciseSelector(selectors.EpollSelector):
        """Waits to the microsecond; epoll itself rounds up to milliseconds."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Wait for what is registered, for at most some seconds."""
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)


def errors_by_reason(samples: Sequence[Sample]) -> Mapping[str, int]:
    """Count the errors, the most frequent first."""
    reasons = [sample.reason for sample in samples if sample.reason]
    counts = {reason: reasons.count(reason) for reason in set(reasons)}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
