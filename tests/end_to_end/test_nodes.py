"""One job over two nodes, as Ray's cluster utilities make them on one machine."""

import json

import pytest

from btray.core.bundle import load_bundle
from btray.data.dataset import Dataset

pytestmark = pytest.mark.cluster

TWO_NODES = """
import sys
import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table
from btray.config import resolve_config
from btray.train.trainer import fit

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
nodes.add_node(num_cpus=3)
nodes.wait_for_nodes()
ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
used = set()

class Places:
    def show(self, update):
        groups = placement_group_table().values() if update["kind"] == "step" else ()
        for group in groups:
            if group["state"] == "CREATED":
                used.update(group["bundles_to_node_id"].values())

run = fit(resolve_config({}, [a for a in sys.argv[1:] if a != "--set"]), Places())
print("nodes", len(used), "epochs", len(run.history))
ray.shutdown()
nodes.shutdown()
"""


LABELLED = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from btray.cluster import require_node
from btray.config import ImageConfig, resolve_config
from btray.data.cache import NodeCaches
from btray.data.dataset import Dataset
from btray.data.decoding import decoded, readable
from btray.errors import UserError

labels = {"btray.io/role": "data"}
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
nodes.add_node(num_cpus=2, labels=labels)
nodes.wait_for_nodes()
ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
(where,) = (node["NodeID"] for node in ray.nodes() if labels.items() <= node["Labels"].items())
require_node(labels)
dataset = Dataset.open(sys.argv[1])
with readable(dataset):
    rows = decoded(dataset, ("train",), ImageConfig(size=32), 2, labels)
    blocks = [block for bundle in rows.iter_internal_ref_bundles() for block in bundle.blocks]
ran = {block.metadata.exec_stats.node_id for block in blocks}
print("where asked", ran == {where}, "rows", sum(b.metadata.num_rows for b in blocks))
caches = NodeCaches(dataset, ("train",), resolve_config({"image": {"size": 32}}))
cached = caches.serve([node["NodeID"] for node in ray.nodes()])
first, second = (Path(rows.path) for rows in cached.values())
print("a file each", first != second, "alike", first.read_bytes() == second.read_bytes())
caches.close()
try:
    require_node({"btray.io/role": "date"})
except UserError as error:
    print(error)
ray.shutdown()
nodes.shutdown()
"""


def test_only_nodes_of_the_wanted_labels_decode_and_every_training_node_gets_the_rows(
    run_python, phantom
):
    done = run_python("-c", LABELLED, phantom)
    assert not done.returncode, done.stderr
    found, cached, refused = done.stdout.splitlines()
    assert cached == "a file each True alike True"
    assert found == f"where asked True rows {Dataset.open(str(phantom)).count('train')}"
    assert refused.startswith("data.node_labels: no live node has btray.io/role=date; ")


def test_two_nodes_train_one_job(run_python, phantom, tmp_path, train_options):
    places = {"data.dataset": phantom, "run.storage": tmp_path / "runs"}
    # Two CPUs a worker on nodes of three: each worker has a node to itself.
    done = run_python("-c", TWO_NODES, *train_options(**places, **{"train.cpus_per_worker": 2}))
    assert "nodes 2 epochs 1" in done.stdout, done.stderr
    assert load_bundle(str(tmp_path / "runs" / "run")).card.name == "btray_cnn"


LOST = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from btray.config import resolve_as
from btray.tune.settings import SweepConfig
from btray.tune.sweep import search

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
spot = nodes.add_node(num_cpus=3)
nodes.wait_for_nodes()
ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")


class Spot:
    '''Takes the second node away once every trial has had some epochs.'''

    def sweep(self, folder, plan):
        print(plan, file=sys.stderr)

    def trial(self, trial, trials):
        global spot
        running = [t for t in trials.values() if t.state == "running"]
        if spot and len(running) == 2 and all(len(t.history) >= 3 for t in running):
            nodes.remove_node(spot, allow_graceful=False)
            spot = None


config = resolve_as(SweepConfig, json.loads(sys.argv[1]))
trials = search(config, Spot()).outcome.trials
print(json.dumps([[t.state, t.failures, [row["epoch"] for row in t.history]] for t in trials]))
ray.shutdown()
nodes.shutdown()
"""


def test_a_lost_node_costs_its_trial_no_finished_epoch(phantom, tmp_path, run_python):
    epochs = 60  # the two processes may start seconds apart
    config = {
        "image": {"size": 32},
        "data": {"dataset": str(phantom), "batch_size": 16},
        "train": {"epochs": epochs, "patience": 0, "cpus_per_worker": 2},
        "run": {"storage": str(tmp_path), "name": "sweep"},
        "tune": {
            "trials": 2, "search": "random", "scheduler": "none", "at_once": 2,
            "max_failures": 3, "space": {"model.dropout": "uniform(0, 0.5)"},
        },
    }  # fmt: skip
    done = run_python("-c", LOST, json.dumps(config))
    assert done.returncode == 0, done.stdout + done.stderr
    (said,) = (line for line in done.stdout.splitlines() if line.startswith("[["))
    trials = json.loads(said)
    assert [state for state, _, _ in trials] == ["finished"] * 2
    assert sum(failures for _, failures, _ in trials) >= 1
    for _, _, seen in trials:
        assert seen == [float(epoch) for epoch in range(epochs)]
