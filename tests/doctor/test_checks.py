"""Each fault a node can have, told in its line; fakes stand for the nodes."""

from dataclasses import replace

import pytest

from btray.doctor import checks
from btray.doctor.checks import Answer, ClusterNode, Status
from btray.doctor.node import NodeFacts

GIB = 2**30
FACTS = NodeFacts(
    host="one", ray="2.60.0", python="3.11.2", btray="0.1.0", torch="2.9.0", clock=1000.5,
    disk_total=100 * GIB, disk_free=50 * GIB, shared_memory=8 * GIB,
)  # fmt: skip
NODE = ClusterNode("a", "10.0.0.1", cpus=8, gpus=0, object_store=4 * GIB)
GPU_NODE = replace(NODE, gpus=2)
GPU_FACTS = replace(FACTS, gpus_of_driver=2, gpus_of_torch=2, cuda="12.8", nccl="2.27.5")


def answer(node=NODE, facts=FACTS, **changes):
    return Answer(node, replace(facts, **changes), "", asked=1000.0, answered=1001.0)


GOOD = answer()


@pytest.mark.parametrize(
    "check",
    [
        checks.check_answers([GOOD]),
        checks.check_versions(FACTS, [GOOD]),
        checks.check_resources([NODE]),
        checks.check_gpus([GOOD]),
        checks.check_storage("s3://b/runs", [GOOD]),
        checks.check_clocks([GOOD]),
        checks.check_ports([GOOD]),
        checks.check_neighbours([GOOD]),
        checks.check_authentication(True, "127.0.0.1:8265"),
        checks.check_disks([GOOD]),
        checks.check_memory([GOOD]),
    ],
    ids=lambda check: check.name,
)
def test_a_sound_cluster_is_told_so(check):
    assert check.status == Status.ok
    assert not check.advice


def test_a_silent_node_fails():
    check = checks.check_answers([GOOD, Answer(NODE, None, "No module named 'btray'")])
    assert check.status == Status.fail
    assert check.found == "10.0.0.1: No module named 'btray'"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ray": "2.59.0"}, "Ray 2.59.0"),
        ({"python": "3.12.1"}, "Python 3.12"),
        ({"btray": "0.0.9"}, "btray 0.0.9"),
        ({"torch": None}, "torch none"),
    ],
)
def test_another_version_fails_and_is_named(changes, said):
    check = checks.check_versions(FACTS, [GOOD, answer(**changes)])
    assert (check.status, check.found) == (Status.fail, f"10.0.0.1: {said}")
    assert "Ray 2.60.0, Python 3.11, btray 0.1.0, torch 2.9.0" in check.advice


def test_another_patch_of_python_is_fine():
    assert checks.check_versions(FACTS, [answer(python="3.11.9")]).status == Status.ok


def test_a_run_that_does_not_fit_fails():
    check = checks.check_resources([NODE, GPU_NODE], "needs 4 GPUs; the cluster has 2")
    assert (check.status, check.advice) == (Status.fail, "needs 4 GPUs; the cluster has 2")
    assert check.found == "2 nodes, 16 CPUs, 2 GPUs, 8.0 GiB of object stores"


def test_storage_that_a_node_cannot_write_fails():
    check = checks.check_storage("s3://b/runs", [GOOD, answer(storage_error="Access Denied")])
    assert (check.status, check.found) == (Status.fail, "10.0.0.1: Access Denied")


def test_storage_that_is_not_shared_fails():
    check = checks.check_storage("/data/runs", [GOOD, answer(sees_marker=False)])
    assert (check.status, check.found) == (Status.fail, "/data/runs is another place on 10.0.0.1")


@pytest.mark.parametrize(
    ("clock", "status"),
    [
        (1002.9, Status.ok),
        (1004.0, Status.warn),
        (996.0, Status.warn),
        (1100.0, Status.fail),
        (900.0, Status.fail),
    ],
)
def test_a_clock_that_is_off(clock, status):
    assert checks.check_clocks([GOOD, answer(clock=clock)]).status == status


def test_a_closed_port_fails_with_both_ends():
    check = checks.check_ports([GOOD, answer(closed_doors=("10.0.0.2:8076 (timed out)",))])
    assert (check.status, check.found) == (
        Status.fail,
        "from 10.0.0.1: 10.0.0.2:8076 (timed out)",
    )


def test_a_node_of_two_clusters_is_doubtful():
    check = checks.check_neighbours([GOOD, answer(clusters=("127.0.0.1:52001",))])
    assert check.status == Status.warn
    assert check.found == "10.0.0.1: also of 127.0.0.1:52001"
    assert "RAY_ADDRESS" in check.advice


@pytest.mark.parametrize(("on", "dashboard"), [(False, "127.0.0.1:8265"), (True, "0.0.0.0:8265")])
def test_an_open_cluster_is_doubtful(on, dashboard):
    check = checks.check_authentication(on, dashboard)
    assert check.status == Status.warn
    assert check.advice


@pytest.mark.parametrize(("free", "status"), [(10, Status.warn), (4, Status.fail)])
def test_a_full_disk(free, status):
    check = checks.check_disks([GOOD, answer(disk_free=free * GIB)])
    assert (check.status, check.found) == (status, f"10.0.0.1: {free} GiB free ({free} %)")


def test_shared_memory_smaller_than_the_store_is_doubtful():
    check = checks.check_memory([GOOD, answer(shared_memory=GIB // 16)])
    assert check.status == Status.warn
    assert "0.1 GiB for a store of 4.0 GiB" in check.found


def test_gpus_that_work_are_listed_with_their_libraries():
    check = checks.check_gpus([GOOD, answer(GPU_NODE, GPU_FACTS)])
    assert (check.status, check.found) == (Status.ok, "2; CUDA 12.8, NCCL 2.27.5")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (replace(GPU_FACTS, gpus_of_torch=0), "Ray counts 2, the driver shows 2, torch 0"),
        (FACTS, "Ray counts 2, the driver shows 0, torch 0"),
        (replace(GPU_FACTS, gpu_error="no torch"), "torch cannot be asked (no torch)"),
    ],
)
def test_gpus_that_are_promised_and_not_there_fail(facts, said):
    check = checks.check_gpus([answer(GPU_NODE, facts)])
    assert (check.status, check.found) == (Status.fail, f"10.0.0.1: {said}")


def test_gpus_that_nobody_uses_and_gpus_that_are_waited_for_are_doubtful():
    assert checks.check_gpus([answer(NODE, GPU_FACTS)]).status == Status.warn
    assert checks.check_gpus([GOOD], wanted=True).status == Status.warn
