"""What any test may use: one shared Ray cluster, the real slices, seeded property tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("btray", deadline=None, derandomize=True, database=None)
settings.load_profile("btray")


def slices_root() -> Path | None:
    """Return the folder of real slices (BTRAY_DATA, else ../shared/data), if it is there."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("BTRAY_DATA") or default)
    return root if root.is_dir() else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses `cluster` and `slices`; skip what needs slices that are not there."""
    absent = pytest.mark.skip(reason="no real slices: set BTRAY_DATA to their folder")
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "cluster" in fixtures:
            item.add_marker("cluster")
        if "slices" in fixtures:
            item.add_marker("real")
        if item.get_closest_marker("real") and slices_root() is None:
            item.add_marker(absent)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One local Ray cluster for the whole session, started by btray's own `connect`."""
    import ray

    from btray.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        connect()
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def slices() -> Path:
    """The folder under which the real slices lie."""
    root = slices_root()
    assert root is not None, "unreachable: the test was skipped"
    return root
