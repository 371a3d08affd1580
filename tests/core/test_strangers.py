import socket
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from btray.core.strangers import strangers


def refuse(*_):
    raise AssertionError("the network was asked")


@pytest.fixture(scope="module")
def images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return list(strangers())


def test_there_are_enough_of_every_kind(images):
    counts = Counter(one.kind for one in images)
    assert list(counts) == ["photograph", "anatomy", "text", "noise"]
    assert min(counts.values()) >= 30
    assert 100 <= len(images) <= 200


def test_they_are_grey_and_large_enough_to_be_read(images):
    for one in images:
        assert one.pixels.dtype == np.uint8
        assert one.pixels.ndim == 2
        assert min(one.pixels.shape) >= 16


def test_none_is_there_twice(images):
    assert len({one.name for one in images}) == len(images)
    assert len({(one.pixels.shape, one.pixels.tobytes()) for one in images}) == len(images)


def test_the_seed_decides(images):
    first = images[:30]
    again, other = list(islice(strangers(), 30)), list(islice(strangers(1), 30))
    assert [one.name for one in again] == [one.name for one in first]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(again, first, strict=True))
    assert not all(np.array_equal(a.pixels, b.pixels) for a, b in zip(other, first, strict=True))


def test_a_file_that_is_not_installed_is_passed_over(monkeypatch):
    files = ("skimage/data/none.png", "skimage/data/camera.png")
    monkeypatch.setattr("btray.core.strangers._PHOTOGRAPHS", files)
    assert next(strangers()).name == "camera.png whole"
