"""Waiting for room on a cluster of others, and asking its autoscaler for it; fakes for both."""

import contextlib

import pytest

from btray import cluster
from btray.config import TrainConfig, resolve_config
from btray.train import trainer
from btray.train.plan import Shortage, wanted


@pytest.fixture
def asked(monkeypatch):
    """What the autoscaler is asked for, in order."""
    asked = []
    monkeypatch.setattr(
        "ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(bundles)
    )
    return asked


class Told(list):
    def show(self, update):
        self.append((update["kind"], update["reason"]))


def test_the_fewest_workers_are_asked_for():
    range_of_workers = TrainConfig(workers="2..8", gpu="always", cpus_per_worker=3)
    assert wanted(range_of_workers) == [{"CPU": 3.0, "GPU": 1.0}] * 2
    assert wanted(TrainConfig(workers=1)) == [{"CPU": 1.0}]


def test_what_was_asked_for_is_given_back_whatever_happens(asked):
    with contextlib.suppress(KeyboardInterrupt), cluster.asked_for([{"GPU": 1.0}]):
        raise KeyboardInterrupt
    assert asked == [[{"GPU": 1.0}], []]


def wait(monkeypatch, shortages, joined=True):
    """Wait while there are shortages; return what was told."""
    left = list(shortages)

    def place(train):
        if left:
            raise Shortage(left.pop(0))

    monkeypatch.setattr(trainer, "place", place)
    monkeypatch.setattr(trainer.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(cluster, "joined", lambda: joined)
    told = Told()
    trainer._await_room(resolve_config({}, ["train.gpu=always"]), told)
    return told


def test_waiting_tells_each_shortage_once_and_asks_meanwhile(monkeypatch, asked):
    told = wait(monkeypatch, ["no GPU", "no GPU", "no GPU", "no core"])
    assert told == [("waiting", "no GPU"), ("waiting", "no core")]
    assert asked == [[{"CPU": 1.0, "GPU": 1.0}], []]


@pytest.mark.parametrize(("shortages", "joined"), [([], True), (["no GPU"], False)])
def test_where_there_is_room_or_no_node_can_join_nothing_is_asked(
    monkeypatch, asked, shortages, joined
):
    assert wait(monkeypatch, shortages, joined) == []
    assert asked == []
