import asyncio
import time

import numpy as np
import pytest

from btray.serve.batcher import Batcher
from btray.serve.errors import ServeError
from tests.serve.fakes import NAMES, FakeEngine


def soon():
    return time.monotonic() + 20


@pytest.fixture
def made():
    batchers = []

    def make(engine, **options):
        batchers.append(Batcher(engine, **options))
        return batchers[-1]

    yield make
    for batcher in batchers:
        batcher.engine.go.set()
        batcher.close()


def test_every_image_has_its_own_answer(made):
    engine = FakeEngine()
    batcher = made(engine)

    async def ask():
        return await asyncio.gather(*(batcher.answer(bytes([n]), soon()) for n in range(40)))

    answers = asyncio.run(ask())
    assert [a.prediction.class_name for a in answers] == [NAMES[n % 4] for n in range(40)]
    assert [int(a.logits.argmax()) for a in answers] == [n % 4 for n in range(40)]
    assert sum(engine.batches) == 40
    assert max(engine.batches) <= 4
    assert batcher.waiting == 0


def test_an_idle_engine_does_not_wait_and_a_busy_one_takes_what_has_come(made):
    engine = FakeEngine(best_batch=8)
    batcher = made(engine)

    async def ask():
        await batcher.answer(b"\1", soon())
        engine.go.clear()
        first = asyncio.create_task(batcher.answer(b"\1", soon()))
        await asyncio.sleep(0.05)  # the engine is at work on it
        rest = [asyncio.create_task(batcher.answer(bytes([n]), soon())) for n in range(8)]
        await asyncio.sleep(0.05)
        engine.go.set()
        await asyncio.gather(first, *rest)

    asyncio.run(ask())
    assert engine.batches == [1, 1, 8]


def test_a_bad_image_does_not_touch_its_neighbours(made):
    batcher = made(FakeEngine(best_batch=8))

    async def ask():
        images = (b"\1", b"", b"\xff\1", b"\2")
        return await asyncio.gather(
            *(batcher.answer(image, soon()) for image in images), return_exceptions=True
        )

    first, empty, damaged, last = asyncio.run(ask())
    assert (first.prediction.class_name, last.prediction.class_name) == (NAMES[1], NAMES[2])
    assert (empty.http_status, empty.code) == (400, "empty")
    assert (damaged.http_status, damaged.code) == (422, "unreadable")


def test_prepared_squares_are_not_decoded(made):
    engine = FakeEngine()
    batcher = made(engine)
    answer = asyncio.run(batcher.answer(np.full((8, 8), 3, np.uint8), soon()))
    assert answer.prediction.class_name == NAMES[3]
    assert not engine.threads


def test_a_fault_of_the_engine_is_told_and_the_next_is_answered(made):
    batcher = made(FakeEngine())

    async def ask():
        with pytest.raises(ServeError) as told:
            await batcher.answer(bytes([200]), soon())
        assert told.value.http_status == 500
        return await batcher.answer(b"\2", soon())

    assert asyncio.run(ask()).prediction.class_name == NAMES[2]


def test_what_nobody_waits_for_any_more_is_not_computed(made):
    engine = FakeEngine(best_batch=1)
    batcher = made(engine)

    async def ask():
        engine.go.clear()
        first = asyncio.create_task(batcher.answer(b"\1", soon()))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(batcher.answer(b"\2", soon()))
        with pytest.raises(ServeError) as late:
            await batcher.answer(b"\3", time.monotonic() + 0.05)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        engine.go.set()
        await first
        await batcher.answer(b"\4", soon())
        return late.value

    assert asyncio.run(ask()).http_status == 504
    assert engine.batches == [1, 1]
    assert batcher.waiting == 0


def test_a_deadline_that_has_passed_is_told_at_once(made):
    engine = FakeEngine()
    with pytest.raises(ServeError) as told:
        asyncio.run(made(engine).answer(b"\1", time.monotonic() - 1))
    assert told.value.code == "deadline_exceeded"


def test_several_threads_may_decode(made):
    engine = FakeEngine(best_batch=8)
    timings = []
    batcher = made(engine, decoders=3, on_batch=timings.append)

    async def ask():
        return await asyncio.gather(*(batcher.answer(bytes([n]), soon()) for n in range(30)))

    assert len(asyncio.run(ask())) == 30
    assert sum(timing.size for timing in timings) == 30
    assert all(timing.infer_s >= 0 <= timing.decode_s for timing in timings)
