"""`btray submit` against the job server of the session's real head."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from btray.core.bundle import load_bundle

pytestmark = pytest.mark.cluster
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def url(cluster):
    return f"http://{ray.get_runtime_context().worker.node.address_info['webui_url']}"


@pytest.fixture
def folder(tmp_path):
    """A working directory: small, so that little is sent."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "hello.txt").write_text("hello")
    return tmp_path / "folder"


@pytest.fixture
def submit(url, folder, run_python):
    def run(*arguments, options=()):
        own = ("submit", "--address", url, "--python", sys.executable, "--working-dir", folder)
        return run_python("-m", "btray", *own, *options, *arguments, RAY_AUTH_MODE="")

    return run


def test_a_job_trains_and_is_followed(submit, phantom, tmp_path, train_options):
    places = {"data.dataset": phantom, "run.storage": tmp_path / "runs"}
    done = submit("train", *train_options(**places))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first step taken" in done.stdout
    assert load_bundle(str(tmp_path / "runs" / "run")).card.provenance.run == "run"


def test_a_mistake_in_the_job_is_exit_code_2(submit):
    done = submit("train", "--data", "/nowhere")
    assert done.returncode == 2
    assert "btray: /nowhere: no btray data set" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_secret_is_looked_up_by_the_job_and_not_in_its_metadata(submit, url, tmp_path):
    from ray.job_submission import JobSubmissionClient

    (tmp_path / "tracking").write_text(f"sqlite:///{tmp_path}/there-is-none.db")
    reference = f"MLFLOW_TRACKING_URI=file:{tmp_path}/tracking"
    done = submit("runs", "list", options=("--secret", reference))
    assert "there-is-none.db" in done.stdout, done.stdout + done.stderr
    [job] = [job for job in JobSubmissionClient(url).list_jobs() if "btray.jobs" in job.entrypoint]
    assert "there-is-none" not in str((job.entrypoint, job.runtime_env, job.metadata))


def test_a_job_can_be_left_and_followed_again(submit):
    left = submit("data", "--help", options=("--detach",))
    assert left.returncode == 0, left.stderr
    again = submit(options=("--attach", left.stdout.strip()))
    assert again.returncode == 0, again.stderr
    assert "phantom" in again.stdout


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(url, folder, phantom, tmp_path, train_options):
    places = {"data.dataset": phantom, "run.storage": tmp_path / "runs", "train.epochs": 1}
    own = ("submit", "--address", url, "--python", sys.executable, "--working-dir", folder)
    command = [sys.executable, "-m", "btray", *own, "train", *train_options(**places)]
    process = subprocess.Popen(
        list(map(str, command)), cwd=CHECKOUT, env=os.environ, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr.readline().startswith("job raysubmit_")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on; follow it with: btray submit --address" in errors
    job = errors.split("--attach ")[1].strip()
    from ray.job_submission import JobSubmissionClient

    JobSubmissionClient(url).stop_job(job)
