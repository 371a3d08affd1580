import asyncio
import random
import threading
import time
from types import SimpleNamespace

import pytest

from btray.errors import UserError
from btray.serve.batcher import Batcher
from btray.serve.config import ModelServed
from btray.serve.errors import ServeError
from btray.serve.models import Models, Source
from tests.serve.fakes import FakeEngine


class Store:
    """Bundles by URI, and what was loaded and closed of them."""

    def __init__(self, **versions):
        self.versions, self.loaded, self.closed, self.broken = versions, [], [], set()

    def identify(self, uri):
        if uri not in self.versions:
            raise UserError(f"{uri}: no bundle")
        return Source(uri, SimpleNamespace(), self.versions[uri])

    def load(self, source):
        if source.version in self.broken:
            raise RuntimeError("no memory")
        self.loaded.append(source.version)
        store = self

        class Told(Batcher):
            def close(self):
                store.closed.append(source.version)
                super().close()

        return Told(FakeEngine(version=source.version))


def models(store, capacity=4):
    return Models(store.identify, store.load, capacity, random.Random(0))


def served(name="btray", bundle="a", **rest):
    return ModelServed(name=name, bundle=bundle, **rest)


async def ask(found, name=None, version=None):
    _, source = found.choose(name, version)
    async with found.lease(source, time.monotonic() + 10) as batcher:
        await batcher.answer(b"\1", time.monotonic() + 10)
        return batcher.engine.version


def test_names_and_versions_lead_to_their_bundles():
    async def run():
        store = Store(a="v1", b="v2", c="v3")
        found = models(store)
        await found.configure([served(versions=("c",)), served("second", "b")])
        assert store.loaded == ["v1", "v2"]  # c waits until it is asked for
        assert await ask(found) == "v1"
        assert await ask(found, "second") == "v2"
        assert await ask(found, "btray", "v3") == "v3"
        for name, version in (("third", None), ("btray", "v2"), ("second", "v1")):
            with pytest.raises(ServeError, match="no"):
                found.choose(name, version)

    asyncio.run(run())


def test_before_anything_is_configured_it_is_not_available():
    with pytest.raises(ServeError) as told:
        models(Store()).choose(None, None)
    assert (told.value.http_status, told.value.retry_after_s) == (503, 1)


def test_a_canary_answers_its_share():
    async def run():
        found = models(Store(a="v1", b="v2"))
        await found.configure([served(canary={"bundle": "b", "percent": 25})])
        versions = [found.choose(None, None)[1].version for _ in range(2000)]
        assert 0.2 < versions.count("v2") / 2000 < 0.3
        assert {found.choose(None, "v1")[1].version for _ in range(50)} == {"v1"}

    asyncio.run(run())


def test_the_longest_unused_is_unloaded_but_not_what_usually_answers():
    async def run():
        store = Store(a="v1", b="v2", c="v3", d="v4")
        found = models(store, capacity=2)
        await found.configure([served(versions=("b", "c", "d"))])
        for version in ("v2", "v3", "v4", "v1"):
            assert await ask(found, "btray", version) == version
        assert store.closed == ["v2", "v3"]
        assert await ask(found, "btray", "v2") == "v2"
        assert store.loaded == ["v1", "v2", "v3", "v4", "v2"]

    asyncio.run(run())


def test_what_is_in_use_is_closed_by_its_last_user():
    async def run():
        store = Store(a="v1", b="v2", c="v3")
        found = models(store, capacity=1)
        await found.configure([served(versions=("b", "c"))])
        async with found.lease(found.choose(None, "v2")[1], time.monotonic() + 10) as batcher:
            await ask(found, None, "v3")
            assert store.closed == []
            await batcher.answer(b"\1", time.monotonic() + 10)
        assert "v2" in store.closed

    asyncio.run(run())


def test_a_new_list_takes_over_whole_and_a_wrong_one_not_at_all():
    async def run():
        store = Store(a="v1", b="v2", d="v4")
        found = models(store)
        await found.configure([served()])
        with pytest.raises(UserError, match="no bundle"):
            await found.configure([served(bundle="b"), served("second", "nowhere")])
        assert await ask(found) == "v1"
        store.broken.add("v4")
        with pytest.raises(RuntimeError, match="no memory"):
            await found.configure([served(bundle="d")])
        assert await ask(found) == "v1"
        store.broken.clear()
        await found.configure([served(bundle="d")])
        assert await ask(found) == "v4"

    asyncio.run(run())


def test_requests_go_on_while_another_bundle_takes_over():
    async def run():
        store = Store(a="v1", b="v2")
        found = models(store)
        await found.configure([served()])
        seen, over = [], asyncio.Event()

        async def client():
            while not over.is_set():
                seen.append(await ask(found))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        for bundle in ("b", "a", "b"):
            await found.configure([served(bundle=bundle)])
            await asyncio.sleep(0.05)
        over.set()
        await asyncio.gather(*clients)
        assert set(seen) == {"v1", "v2"}

    asyncio.run(run())


def test_many_first_requests_load_a_bundle_once():
    async def run():
        store = Store(a="v1", b="v2")
        found = models(store)
        await found.configure([served(versions=("b",))])
        await asyncio.gather(*(ask(found, None, "v2") for _ in range(20)))
        assert store.loaded.count("v2") == 1

    asyncio.run(run())


def test_a_list_of_many_new_bundles_has_them_all_loaded():
    async def run():
        store = Store(a="v1", b="v2", c="v3", d="v4")
        found = models(store, capacity=2)
        await found.configure([served()])
        canary = {"bundle": "c", "percent": 10}
        await found.configure([served(bundle="b", canary=canary, shadow="d")])
        assert store.loaded == ["v1", "v2", "v3", "v4"]
        assert store.closed == ["v1"]

    asyncio.run(run())


def test_a_bundle_that_cannot_be_loaded_is_unavailable_and_not_tried_at_once_again():
    async def run():
        store = Store(a="v1", b="v2")
        tries = []
        load = store.load
        store.load = lambda source: (tries.append(source.version), load(source))[1]
        store.broken.add("v2")
        found = models(store)
        await found.configure([served(versions=("b",))])
        for _ in range(3):
            with pytest.raises(ServeError) as told:
                await ask(found, None, "v2")
            assert (told.value.http_status, told.value.code) == (503, "unavailable")
        assert tries == ["v1", "v2"]
        assert await ask(found) == "v1"

    asyncio.run(run())


def test_waiting_for_a_bundle_ends_at_the_deadline():
    async def run():
        store, go = Store(a="v1", b="v2"), threading.Event()
        found = models(store)
        await found.configure([served(versions=("b",))])
        load = store.load
        found.load = lambda source: (go.wait(10), load(source))[1]
        _, source = found.choose(None, "v2")
        with pytest.raises(ServeError) as told:
            async with found.lease(source, time.monotonic() + 0.05):
                pass
        go.set()
        assert told.value.code == "deadline_exceeded"
        assert await ask(found, None, "v2") == "v2"  # the load goes on

    asyncio.run(run())


def test_an_engine_that_fails_again_and_again_is_told_to_be_broken():
    async def run():
        found = models(Store(a="v1"))
        await found.configure([served()])
        _, source = found.choose(None, None)
        async with found.lease(source, time.monotonic() + 10) as batcher:
            for count in range(3):
                assert found.healthy
                with pytest.raises(ServeError):
                    await batcher.answer(bytes([200]), time.monotonic() + 10)
                assert batcher.failures == count + 1
            assert not found.healthy
            await batcher.answer(b"\1", time.monotonic() + 10)
        assert found.healthy

    asyncio.run(run())
