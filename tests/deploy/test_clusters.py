"""Cluster files: Ray takes them, they are private, and their labels are those btray asks for."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from btray.config import load_config
from btray.version import __version__

CHECKOUT = Path(__file__).parents[2]
FILES = {
    "aws": CHECKOUT / "cluster.yaml",
    **{path.stem: path for path in (CHECKOUT / "deploy" / "clusters").glob("*.yaml")},
}
CLOUDS = ["aws", "azure", "gcp"]
ROLE = "btray.io/role"

every_file = pytest.mark.parametrize("name", sorted(FILES))
every_cloud = pytest.mark.parametrize("name", CLOUDS)


def load(name):
    return yaml.safe_load(FILES[name].read_text())


def starts(tree):
    return [
        command
        for part in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in tree[part]
        if "ray start" in command
    ]


def test_there_is_a_file_for_each_place():
    assert sorted(FILES) == ["aws", "azure", "gcp", "local"]


@every_file
def test_it_fits_rays_schema(name):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(load(name), schema)


@every_file
def test_ray_prepares_and_accepts_it(name):
    prepared = prepare_config(copy.deepcopy(load(name)))
    validate_config(prepared)
    assert prepared["provider"]["type"] == name
    assert prepared["max_workers"] >= 1


@every_file
def test_the_dashboard_is_private_and_a_token_is_asked_for(name):
    tree = load(name)
    head, worker = starts(tree)
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in FILES[name].read_text()
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command.split("ray start")[0]
    assert tree["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in tree["setup_commands"]


@every_file
def test_the_autoscaler_is_version_2_but_where_hosts_are_given(name):
    head = starts(load(name))[0]
    assert f"RAY_enable_autoscaler_v2={0 if name == 'local' else 1}" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


@every_file
def test_the_project_and_ray_are_installed_by_version(name):
    commands = " ".join(load(name)["setup_commands"])
    assert f"'btray=={__version__}'" in commands
    assert f"'ray[default]=={ray.__version__}'" in commands
    assert load(name)["file_mounts"]["~/wheels"] == "./dist"


@every_cloud
def test_every_role_has_nodes_and_only_training_is_interrupted(name):
    types = load(name)["available_node_types"]
    roles = {key: node["labels"][ROLE] for key, node in types.items()}
    assert set(roles.values()) == {"head", "data", "train", "serve"}
    spot = {key for key, node in types.items() if re.search("spot", str(node["node_config"]), re.I)}
    assert spot == {"train_spot"}
    gpus = {key for key, node in types.items() if node["resources"].get("GPU")}
    assert gpus == {key for key, role in roles.items() if role == "train"}


@every_cloud
def test_spot_nodes_come_first_and_are_like_those_on_demand(name):
    types = load(name)["available_node_types"]
    spot, on_demand = types["train_spot"], types["train_on_demand"]
    assert spot["priority"] > on_demand["priority"]
    assert spot["resources"] == on_demand["resources"]
    assert spot["labels"][ROLE] == on_demand["labels"][ROLE]


@every_cloud
def test_no_work_lands_on_the_head(name):
    tree = load(name)
    assert tree["available_node_types"][tree["head_node_type"]]["resources"] == {"CPU": 0}


@every_cloud
def test_the_labels_the_recipes_ask_for_are_on_nodes_that_are_always_there(name):
    wanted = load_config(CHECKOUT / "examples" / "jobs" / "train.yaml").data.node_labels
    assert wanted
    types = load(name)["available_node_types"].values()
    assert any(
        wanted.items() <= node["labels"].items() and node.get("min_workers") for node in types
    )


def test_own_machines_tell_their_role_themselves():
    head, worker = starts(load("local"))
    assert f"--labels={ROLE}=head" in head
    assert f"--labels={ROLE}=$(cat ~/btray-role" in worker
