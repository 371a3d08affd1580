"""Ctrl-C in a run on the cluster that `RAY_ADDRESS` names, and going on with it."""

import os
import signal
import subprocess
import sys

import pytest

from btray.train.trainer import resume

pytestmark = pytest.mark.cluster


def test_an_interrupted_run_says_how_to_go_on_and_does(
    cluster_address, phantom, tmp_path, train_options
):
    places = {"data.dataset": phantom, "run.storage": tmp_path / "runs", "train.epochs": 6}
    command = [sys.executable, "-m", "btray", "train", *train_options(**places)]
    environment = os.environ | {"RAY_ADDRESS": cluster_address, "RAY_AUTH_MODE": "token"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("epoch   1/6"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    folder = tmp_path / "runs" / "run"
    assert said[-1] == f"interrupted; go on with: btray train --resume {folder}\n"
    run = resume(str(folder))
    assert [row["epoch"] for row in run.history] == list(range(6))
