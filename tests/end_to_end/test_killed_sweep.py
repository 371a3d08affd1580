"""SIGKILL of the driver in the middle of a sweep, and going on with it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from btray.tune.sweep import resume

pytestmark = pytest.mark.cluster

EPOCHS = 30
PATIENCE_S = 120


def told(folder):
    """Every epoch that Ray Tune was told of, by trial."""
    return {
        path.parent.name: [
            one["epoch"] for one in map(json.loads, path.read_text().splitlines()) if "epoch" in one
        ]
        for path in folder.glob("trial-*/result.json")
    }


def finished(epochs):
    return {name for name, seen in epochs.items() if seen and seen[-1] == EPOCHS - 1}


@pytest.fixture
def start(cluster_address, phantom, tmp_path, train_options):
    def start(**tune):
        space = "{train.learning_rate: 'loguniform(1e-4, 1e-2)'}"
        settings = {
            "data.dataset": phantom, "run.storage": tmp_path, "run.name": "sweep",
            "train.workers": 1, "train.epochs": EPOCHS, "train.patience": 0,
            "tune.search": "random", "tune.at_once": 2, "tune.space": space,
        }  # fmt: skip
        settings |= {f"tune.{name}": value for name, value in tune.items()}
        return subprocess.Popen(
            [sys.executable, "-m", "btray", "tune", *train_options(**settings)],
            env=os.environ | {"RAY_ADDRESS": cluster_address, "RAY_AUTH_MODE": "token"},
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    return start


def test_a_population_goes_on(start, tmp_path):
    folder = tmp_path / "sweep"
    with start(scheduler="pbt", trials=3, perturb_epochs=10) as process:
        end = time.monotonic() + PATIENCE_S
        while min(map(len, told(folder).values()), default=0) < 10 and time.monotonic() < end:
            time.sleep(0.1)
        process.kill()
    epochs = told(folder)
    assert len(epochs) == 3
    assert not finished(epochs)
    trials = resume(str(folder)).outcome.trials
    assert [trial.state for trial in trials] == ["finished"] * 3


def test_finished_trials_are_kept_and_none_is_run_twice(start, tmp_path):
    over = 0
    with start(scheduler="none", trials=6) as process:
        for line in process.stderr:
            over += line.startswith("trial ") and " finished " in line
            if over == 3:
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    folder = tmp_path / "sweep"
    before = told(folder)
    assert len(finished(before)) >= 2  # the third had only just been told
    assert not (folder / "sweep.json").exists()

    done = resume(str(folder))
    assert [trial.state for trial in done.outcome.trials] == ["finished"] * 6
    assert {f"trial-{trial.id}" for trial in done.outcome.trials} >= finished(before)
    after = told(folder)
    for name in finished(before):
        assert after[name] == before[name]  # not an epoch more
    for name in after.keys() - finished(before):
        assert len(after[name]) <= EPOCHS + 2  # on from the last record, a second ago at most
    for trial in done.outcome.trials:
        assert [row["epoch"] for row in trial.history] == list(range(EPOCHS))
    points = Counter(str(trial.point) for trial in done.outcome.trials)
    assert set(points.values()) == {1}
