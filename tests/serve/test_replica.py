"""A replica's own logic, with real bundles and without Ray Serve."""

import asyncio
import shutil

import pytest

from btray.errors import UserError
from btray.serve.replica import Classifier


@pytest.fixture(scope="module")
def bundles(make_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / "a"), make_bundle(folder / "b", name="other")]


@pytest.fixture(autouse=True)
def exports(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def served(*uris):
    return {"models": [{"name": f"m{number}", "bundle": uri} for number, uri in enumerate(uris)]}


def versions(classifier):
    return [model.usual.version for model in classifier.service.models.names.values()]


def test_a_wrong_list_of_models_leaves_a_working_replica_as_it_is(bundles):
    first, second = bundles

    async def run():
        classifier = Classifier({})
        with pytest.raises(UserError, match="no bundle"):
            await classifier.reconfigure(served("nowhere"))  # at its start it may fail
        await classifier.reconfigure(served(first.uri))
        classifier.check_health()
        await classifier.reconfigure(served(second.uri, "nowhere"))
        assert versions(classifier) == [first.version]
        await classifier.reconfigure(served(second.uri))
        assert versions(classifier) == [second.version]

    asyncio.run(run())


def test_a_bundle_that_was_replaced_is_not_taken_for_the_one_that_was_listed(bundles, tmp_path):
    first, second = bundles
    shutil.copytree(first.uri, tmp_path / "bundle")
    classifier = Classifier({})
    source = classifier._identify(str(tmp_path / "bundle"))
    shutil.rmtree(tmp_path / "bundle")
    shutil.copytree(second.uri, tmp_path / "bundle")
    with pytest.raises(UserError, match="any more"):
        classifier._load(source)


def test_the_registrys_names_are_followed(bundles, tmp_path, monkeypatch):
    from btray.registry.client import locate
    from btray.registry.models import Registry

    tracking = str(tmp_path / "runs")
    registry = Registry(locate(tracking, "runs"), create=True)
    for bundle in bundles:
        registry.register(bundle, "served", None)

    async def run():
        classifier = Classifier({"tracking": tracking, "watch_s": 0.1})
        registry.promote(registry.get("served", None, "1"), force=True)
        await classifier.reconfigure(served("models:/served@champion"))
        assert versions(classifier) == [bundles[0].version]
        registry.promote(registry.get("served", None, "2"), force=True)
        async with asyncio.timeout(60):
            while versions(classifier) != [bundles[1].version]:
                await asyncio.sleep(0.05)

    asyncio.run(run())
