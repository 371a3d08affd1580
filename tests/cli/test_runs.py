import json

import pytest
from typer.testing import CliRunner

from btray.cli import app
from btray.config import resolve_config
from btray.errors import UserError
from btray.registry.tracker import Tracker
from btray.train.storage import RunFolder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder with two tracked runs, `slow` and `fast`."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, rate in (("slow", 1e-4), ("fast", 1e-2)):
        tree = {
            "train": {"learning_rate": rate},
            "run": {"storage": str(tmp_path / "runs"), "name": name},
        }
        folder, config = RunFolder.create(resolve_config(tree))
        with Tracker(config, "d" * 64, print) as tracker:
            tracker.show({"kind": "run", "uri": folder.uri})
            for number in range(3):
                metrics = {"epoch": number, "val_accuracy": 0.5 + rate, "val_macro_f1": 0.5}
                tracker.show({"kind": "epoch", "epoch": number, "metrics": metrics})
    return tmp_path / "runs"


def test_runs_are_listed_shown_and_compared(store, tmp_path):
    found = json.loads(run("runs", "list", "--tracking", store, "--format", "json").stdout)
    assert [one["name"] for one in found] == ["fast", "slow"]
    one = json.loads(run("runs", "show", "slow", "--tracking", store, "--format", "json").stdout)
    assert one == found[1]
    assert one["params"]["train.learning_rate"] == "0.0001"
    picture = tmp_path / "compare.png"
    compare = ("runs", "compare", "slow", "fast", "--tracking", store)
    told = json.loads(run(*compare, "--out", picture, "--format", "json").stdout)
    assert told["parameters"] == {"train.learning_rate": ["0.0001", "0.01"]}
    assert told["scores"]["latest_val_accuracy"] == [0.5001, 0.51]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "train.learning_rate" in run(*compare).stdout
    for command in (("list",), ("show", "fast")):
        assert "fast" in run("runs", *command, "--tracking", store).stdout
    assert run("runs", "sync", store / "fast").stdout.startswith("0 events sent")


def test_mistakes(store, tmp_path):
    for arguments, message in (
        (("show", "fats", "--tracking", store), "no run 'fats'; nearest: fast"),
        (("compare", "fast", "--tracking", store), "needs two runs or more"),
        (("list", "--tracking", tmp_path), "no tracked runs or models there"),
        (("list", "--tracking", store, "--experiment", "x"), "no experiment 'x'"),
        (("sync", tmp_path), "no tracked run"),
    ):
        done = run("runs", *arguments)
        assert isinstance(done.exception, UserError)
        assert message in str(done.exception)
