"""The examination of the session's real cluster, and of none."""

import json
import socket
import subprocess
import sys

import pytest
import ray

from btray.cli.doctor import doctor
from btray.config import resolve_config
from btray.doctor.examination import check_registry, examine
from btray.doctor.node import Questions, look
from btray.errors import UserError


def settings(tmp_path, *more):
    return resolve_config({}, [f"run.storage={tmp_path}/runs", *more])


@pytest.mark.cluster
def test_a_sound_cluster_passes_and_nothing_is_left(cluster, tmp_path):
    found = {check.name: check for check in examine(settings(tmp_path))}
    assert not [check for check in found.values() if check.status == "fail"], found
    assert found["nodes"].found == "1 of 1 answer"
    assert found["storage"].status == found["ports"].status == "ok"
    assert found["authentication"].found == "token; the dashboard is private"
    own = ray.get_runtime_context().gcs_address
    assert own not in found["neighbours"].found
    questions = repr(Questions(str(tmp_path), "marker", ()))
    alone = f"from btray.doctor.node import *; print(look({questions}).clusters)"  # of no cluster
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True)
    assert own in done.stdout, done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.cluster
def test_a_run_that_would_fail_is_told(cluster, tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = settings(tmp_path, "train.gpu=always", f"run.storage={tmp_path}/file/runs")
    found = {check.name: check for check in examine(config)}
    assert found["resources"].status == found["storage"].status == "fail"
    assert "train.gpu=always needs 1 GPUs" in found["resources"].advice


def test_no_cluster_is_a_failed_check_and_exit_code_1(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        options = ["--address", address, "--json", "--set", f"run.storage={tmp_path}"]
        command = [sys.executable, "-m", "btray", "doctor", *options]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert said["ok"] is False
    assert said["checks"][0]["name"] == "cluster"
    assert "no Ray cluster can be joined there" in said["checks"][0]["found"]


def test_a_job_servers_address_is_told_apart():
    with pytest.raises(UserError, match="btray submit --address http://head:8265 doctor"):
        doctor(address="http://head:8265")


def test_a_node_tells_what_it_cannot_reach_and_write(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        door = ("127.0.0.1", free.getsockname()[1])
        facts = look(Questions(f"{tmp_path}/file/runs", "marker", (door,)))
    assert facts.closed_doors == (f"127.0.0.1:{door[1]} (Connection refused)",)
    assert facts.storage_error
    assert not facts.sees_marker
    assert facts.python.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


def test_the_registry(tmp_path):
    assert "the first run makes it" in check_registry(settings(tmp_path)).found
    assert check_registry(settings(tmp_path, "tracking.enabled=false")).found == "tracking is off"
    assert check_registry(settings(tmp_path, "run.storage=s3://bucket/runs")).status == "warn"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_text("no database at all, but a text of some length")
    assert check_registry(settings(tmp_path)).status == "fail"
