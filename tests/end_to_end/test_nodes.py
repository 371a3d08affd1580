"""One job over two nodes, as Ray's cluster utilities make them on one machine."""

import pytest

from btray.core.bundle import load_bundle

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


def test_two_nodes_train_one_job(run_python, phantom, tmp_path, train_options):
    places = {"data.dataset": phantom, "run.storage": tmp_path / "runs"}
    # Two CPUs a worker on nodes of three: each worker has a node to itself.
    done = run_python("-c", TWO_NODES, *train_options(**places, **{"train.cpus_per_worker": 2}))
    assert "nodes 2 epochs 1" in done.stdout, done.stderr
    assert load_bundle(str(tmp_path / "runs" / "run")).card.name == "btray_cnn"
