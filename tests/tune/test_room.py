import pytest
import ray

from btray.config import Config, TrainConfig
from btray.errors import UserError
from btray.tune.room import make_room
from btray.tune.settings import TuneConfig


@pytest.fixture
def resources(monkeypatch):
    def have(*nodes):
        names = ("CPU", "GPU")
        total = {name: float(sum(node[i] for node in nodes)) for i, name in enumerate(names)}
        alive = [
            {"Alive": True, "Resources": {"CPU": float(cpu), "GPU": float(gpu)}}
            for cpu, gpu in nodes
        ]
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(ray, "nodes", lambda: alive)

    return have


def room(trials=32, tune=None, **train):
    return make_room(Config(train=TrainConfig(**train)), TuneConfig(**(tune or {})), trials)


@pytest.mark.parametrize(
    ("nodes", "trials", "at_once", "cpus"),
    [
        ([(4, 0)], 32, 2, 1),
        ([(18, 0)], 32, 16, 1),
        ([(18, 0)], 4, 4, 4),
        ([(4, 0)] * 4, 2, 2, 4),  # no node has the seven cores each that there are in all
    ],
)
def test_trials_share_the_cores_and_find_a_node(resources, nodes, trials, at_once, cpus):
    resources(*nodes)
    found = room(trials)
    assert (found.at_once, found.cpus) == (at_once, cpus)
    assert found.resources == {"cpu": cpus}
    assert found.why.startswith(f"{at_once} trials at a time")


@pytest.mark.parametrize(
    ("nodes", "share", "at_once", "cpus"),
    [
        ([(18, 4)], 1.0, 4, 4),
        ([(18, 2)], 0.6, 2, 8),  # not three: none takes a part of each GPU
        ([(18, 1)], 0.25, 4, 4),
        ([(4, 1), (64, 0)], 1.0, 1, 4),  # as many cores as the node with the GPU has
    ],
)
def test_trials_share_the_gpus(resources, nodes, share, at_once, cpus):
    resources(*nodes)
    found = room(tune={"gpus_per_trial": share})
    assert (found.at_once, found.cpus, found.gpus) == (at_once, cpus, share)
    assert found.resources == {"cpu": cpus, "gpu": share}
    assert room(gpu="never").gpus == 0


def test_where_trials_are_paused_the_resources_bound_how_many_are_at_work(resources):
    resources((18, 0))
    found = room(tune={"scheduler": "hyperband", "at_once": 4})
    assert (found.at_once, found.cpus) == (4, 4)
    assert 18 // found.reserved == 4
    resources((4, 0))
    assert room(tune={"scheduler": "pbt", "search": "random"}).resources == {"cpu": 2}


def test_trials_of_several_workers_are_placed_by_ray_train(resources):
    resources((18, 8))
    found = room(workers=4)
    assert (found.at_once, found.workers, found.gpus_each) == (2, 4, 4)
    assert found.resources == {"cpu": 0.01}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"gpu": "always"}, "needs a GPU"),
        ({"cpus_per_worker": 9}, "no node has so many cores"),
        ({"workers": "1..2"}, "no range"),
    ],
)
def test_what_does_not_fit_is_one_line(resources, train, message):
    resources((8, 0))
    with pytest.raises(UserError, match=message):
        room(**train)
