import json

import pytest
from typer.testing import CliRunner

from btray.cli import app
from btray.errors import UserError

pytestmark = pytest.mark.cluster


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_train_prints_the_bundle_and_draws_the_curves(phantom, tmp_path):
    storage = tmp_path / "runs"
    settings = ("image.size=32", "data.batch_size=16", "train.epochs=2", f"run.storage={storage}")
    options = [part for setting in settings for part in ("--set", setting)]
    done = run("train", "--data", phantom, "--name", "a", *options)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(storage / "a" / "bundle")
    assert "first step taken" in done.stderr
    assert "epoch   2/2" in done.stderr
    assert "best epoch" in done.stderr
    assert (storage / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tracked,) = json.loads(run("runs", "list", "--tracking", storage, "--format", "json").stdout)
    assert (tracked["name"], tracked["status"]) == ("a", "FINISHED")
    assert tracked["metrics"]["val_loss"] > 0
    assert (storage / "mlartifacts" / tracked["run_id"] / "artifacts/bundle/bundle.json").exists()
    assert "tracking:" not in done.stderr
    again = run("train", "--resume", storage / "a")
    assert isinstance(again.exception, UserError)
    assert "finished" in str(again.exception)
    named = run("train", "--data", phantom, "--name", "a", *options)
    assert "a run of this name is there already" in str(named.exception)
    for early in (again, named):
        assert "starting" not in early.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resume", "x", "--set", "seed=1"), "no run to resume"),
        (("--resume", "/nowhere/run"), "no run to resume"),
        (("--data", "/nowhere"), "no btray data set"),
        ((), "data.dataset is not set"),
    ],
)
def test_mistakes(cluster, arguments, message):
    done = run("train", *arguments)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_a_name_that_looks_like_a_number_is_a_name(monkeypatch):
    seen = []

    def note(config):
        seen.append(config)
        raise UserError("seen")

    monkeypatch.setattr("btray.train.inputs.open_training_data", note)
    run("train", "--name", "2024", "--data", "/data/brain #2")
    assert (seen[0].run.name, seen[0].data.dataset) == ("2024", "/data/brain #2")
