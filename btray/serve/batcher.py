"""Requests that wait together are computed together; none waits for company."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from btray.core.answers import Outputs, Prediction
from btray.core.images import ImageError
from btray.serve.errors import ServeError

if TYPE_CHECKING:
    from btray.core.engine import Engine

_STOP: Final = None
_FAILURES: Final = 3
"""Batches that may fail one after another before the engine counts as broken."""


@dataclass(frozen=True)
class Answer:
    """What the engine says of one image."""

    prediction: Prediction
    logits: NDArray[np.float32]
    """[classes]."""


@dataclass
class Timings:
    """Seconds a batch took in each stage."""

    size: int
    waiting_s: float
    """Of the image that waited longest."""
    decode_s: float
    infer_s: float


@dataclass
class _Job:
    image: bytes | NDArray[np.uint8]
    deadline: float
    """By `time.monotonic`."""
    future: "asyncio.Future[Answer]"
    asked: float = field(default_factory=time.monotonic)


Result = Answer | ServeError


class Batcher:
    """One engine and the thread that works for it.

    The thread takes all that waits, up to a batch, and computes it: an idle engine answers at
    once, and under load batches form by themselves. Decoding and computing are off the event
    loop. May be used from one event loop.
    """

    def __init__(
        self,
        engine: "Engine",
        max_batch: int | None = None,
        decoders: int = 1,
        on_batch: Callable[[Timings], None] | None = None,
    ) -> None:
        self.engine = engine
        self.max_batch = max_batch or engine.best_batch
        self.waiting = 0
        """Images asked for and not yet answered."""
        self.failures = 0
        """Batches that failed since the last that did not."""
        self._on_batch = on_batch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._decoders = ThreadPoolExecutor(decoders) if decoders > 1 else None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    async def answer(self, image: bytes | NDArray[np.uint8], deadline: float) -> Answer:
        """Answer for one encoded image, or one prepared square [size, size].

        Raises:
            ServeError: an image that cannot be used, a deadline (`time.monotonic`) that has
                passed, or a fault of the engine.

        """
        loop = asyncio.get_running_loop()
        job = _Job(image, deadline, loop.create_future())
        self.waiting += 1
        try:
            self._jobs.put(job)
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                return await job.future
        except TimeoutError:
            raise ServeError("deadline_exceeded", "no answer in the time that was given") from None
        finally:
            self.waiting -= 1

    @property
    def healthy(self) -> bool:
        """Whether the engine answers: its thread lives, and not every batch fails."""
        return self._thread.is_alive() and self.failures < _FAILURES

    def close(self) -> None:
        """End the thread once what waits is answered."""
        self._jobs.put(_STOP)

    def _work(self) -> None:
        while jobs := self._next_batch():
            begun = time.monotonic()
            waiting = begun - min(job.asked for job in jobs)
            wanted = [job for job in jobs if job.deadline > begun and not job.future.cancelled()]
            if wanted:
                self._answer(wanted, waiting)
        if self._decoders is not None:
            self._decoders.shutdown()

    def _next_batch(self) -> list[_Job]:
        """Wait for a job and take with it what else is there; empty at the end."""
        first = self._jobs.get()
        if first is None:
            return []
        jobs = [first]
        while len(jobs) < self.max_batch:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(_STOP)
                break
            jobs.append(job)
        return jobs

    def _answer(self, jobs: Sequence[_Job], waiting: float) -> None:
        begun = time.monotonic()
        results: list[Result]
        try:
            squares = self._squares([job.image for job in jobs])
            decoded = time.monotonic()
            results = self._results(squares)
            self.failures = 0
            if self._on_batch is not None:
                self._on_batch(
                    Timings(len(jobs), waiting, decoded - begun, time.monotonic() - decoded)
                )
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self.failures += 1
            _log_fault(error)
            results = [ServeError("internal", "the engine failed; see the server's log")] * len(
                jobs
            )
        loop = jobs[0].future.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(_deliver, jobs, results)

    def _squares(
        self, images: Sequence[bytes | NDArray[np.uint8]]
    ) -> list[NDArray[np.uint8] | ServeError]:
        if self._decoders is None or len(images) == 1:
            return [self._square(image) for image in images]
        return list(self._decoders.map(self._square, images))

    def _square(self, image: bytes | NDArray[np.uint8]) -> NDArray[np.uint8] | ServeError:
        if isinstance(image, np.ndarray):
            return image
        try:
            return self.engine.prepare(image)
        except ImageError as error:
            return ServeError.of_image(error)
        except Exception as error:  # noqa: BLE001 - of this image alone, not of its neighbours
            _log_fault(error)
            return ServeError("internal", "the image could not be prepared; see the server's log")

    def _results(self, squares: Sequence[NDArray[np.uint8] | ServeError]) -> list[Result]:
        usable = [square for square in squares if isinstance(square, np.ndarray)]
        answers = iter(self._answers(np.stack(usable)) if usable else [])
        return [next(answers) if isinstance(s, np.ndarray) else s for s in squares]

    def _answers(self, squares: NDArray[np.uint8]) -> list[Answer]:
        outputs: Outputs = self.engine.outputs(squares)
        predictions = self.engine.predictions(outputs)
        return [Answer(p, row) for p, row in zip(predictions, outputs.logits, strict=True)]


def _deliver(jobs: Sequence[_Job], results: Sequence[Result]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.future.done():
            continue
        if isinstance(result, ServeError):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)


def _log_fault(error: Exception) -> None:
    from btray.serve.log import LOGGER

    LOGGER.error("engine failed", exc_info=error)
