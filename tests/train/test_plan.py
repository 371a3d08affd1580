import pytest
import ray

from btray.config import TrainConfig
from btray.errors import UserError
from btray.train.plan import Placement, place


@pytest.fixture
def resources(monkeypatch):
    def have(cpus, gpus=0, nodes=1):
        total = {"CPU": float(cpus * nodes), "GPU": float(gpus * nodes)}
        node = {"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(ray, "nodes", lambda: [node] * nodes)

    return have


@pytest.mark.parametrize(
    ("cpus", "workers", "expected"), [(4, 1, 2), (4, 2, 1), (10, 2, 4), (66, 2, 8), (3, 1, 1)]
)
def test_cores_are_shared_out_and_some_kept_for_reading(resources, cpus, workers, expected):
    resources(cpus)
    assert place(TrainConfig(workers=workers)).cpus == expected


def test_gpus_are_used_when_there_are_enough(resources):
    resources(16, gpus=2)
    assert place(TrainConfig(workers=2)).gpu
    assert not place(TrainConfig(workers=4)).gpu
    assert not place(TrainConfig(workers=2, gpu="never")).gpu


def test_missing_gpus_are_refused(resources):
    resources(16)
    with pytest.raises(UserError, match="needs 1 GPUs; the cluster has 0"):
        place(TrainConfig(gpu="always"))


def test_workers_that_leave_no_core_for_reading_are_refused(resources):
    resources(4)
    with pytest.raises(UserError, match=r"lower train\.workers"):
        place(TrainConfig(workers=4))


def test_a_worker_larger_than_any_node_is_refused(resources):
    resources(4, nodes=4)
    with pytest.raises(UserError, match="no node has 6"):
        place(TrainConfig(workers=1, cpus_per_worker=6))


def test_default_cores_fit_a_node(resources):
    resources(4, nodes=4)
    assert place(TrainConfig(workers=2)).cpus == 4


def test_a_range_of_workers_shares_the_cores_that_are_there(resources):
    resources(18)
    assert place(TrainConfig(workers="1..4")).cpus == 4
    resources(4, nodes=2)
    assert place(TrainConfig(workers="2..8")).cpus == 1


def test_scaling_asks_ray_for_the_same():
    scaling = Placement(workers=3, cpus=2, gpu=True).scaling()
    assert scaling.num_workers == 3
    assert scaling.resources_per_worker == {"CPU": 2, "GPU": 1}


def test_default_cores_are_lowered_until_all_workers_find_a_node(resources):
    resources(5, nodes=3)
    assert place(TrainConfig(workers=4)).cpus == 2


def test_workers_that_do_not_pack_onto_the_nodes_are_refused(resources):
    resources(5, nodes=3)
    with pytest.raises(UserError, match="does not fit the cluster"):
        place(TrainConfig(workers=4, cpus_per_worker=3))


def test_a_range_of_workers_needs_room_for_the_fewest(resources):
    resources(3)
    placement = place(TrainConfig(workers="2..8", cpus_per_worker=1))
    assert placement.scaling().num_workers == (2, 8)
    with pytest.raises(UserError, match=r"train\.workers=4\.\.8 with 1 CPUs each does not fit"):
        place(TrainConfig(workers="4..8", cpus_per_worker=1))
