"""`ray job submit` against the job server of a real local head."""

import sys

import pytest
import ray

from btray.core.bundle import load_bundle

pytestmark = pytest.mark.cluster


@pytest.fixture
def submit(cluster, run_python):
    """Submit a btray command to the session's head and wait for it."""
    dashboard = ray.get_runtime_context().worker.node.address_info["webui_url"]

    def run(*arguments):
        command = ("-m", "ray.scripts.scripts", "job", "submit", "--address", f"http://{dashboard}")
        entrypoint = ("--working-dir", ".", "--", sys.executable, "-m", "btray", *arguments)
        return run_python(*command, *entrypoint, RAY_AUTH_MODE="token")

    return run


def test_a_submitted_job_trains(submit, phantom, tmp_path, train_options):
    places = {"data.dataset": phantom, "run.storage": tmp_path / "runs"}
    done = submit("train", *train_options(**places))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first step taken" in done.stdout
    assert load_bundle(str(tmp_path / "runs" / "run")).card.provenance.run == "run"


def test_a_submitted_job_tunes(submit, phantom, tmp_path, train_options):
    settings = {
        "data.dataset": phantom, "run.storage": tmp_path, "run.name": "sweep",
        "train.workers": 1, "train.patience": 0, "train.warmup_epochs": 0, "tune.trials": 2,
        "tune.search": "random", "tune.space": "{model.dropout: 'uniform(0,0.5)'}",
    }  # fmt: skip
    done = submit("tune", *train_options(**settings))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("finished after 1/1 epochs") == 2
    assert load_bundle(str(tmp_path / "sweep" / "bundle")).card.metrics


def test_a_mistake_in_a_submitted_job_is_one_line_and_fails_it(submit):
    done = submit("train", "--data", "/nowhere")
    assert done.returncode == 1
    assert "btray: /nowhere: no btray data set" in done.stdout
    assert "Traceback" not in done.stdout
