import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from btray.cli import app
from btray.errors import UserError


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def store(tiny_bundle, tmp_path, monkeypatch):
    """A folder of runs with one model, which the environment names."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "runs"))
    done = run("models", "register", tiny_bundle.uri, "--name", "tumours")
    assert (done.exit_code, done.stdout) == (0, "tumours:1\n")
    assert "by --force only" in done.stderr


def test_a_model_is_promoted_and_predicts(store, tiny_bundle, tmp_path):
    done = run("models", "promote", "tumours", "challenger", "--force")
    assert done.stdout == "tumours:1 is the champion\n"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rows = [
        json.loads(run("predict", "--bundle", uri, "--format", "jsonl", tmp_path / "a.png").stdout)
        for uri in ("models:/tumours@champion", "models:/tumours/1", tiny_bundle.uri)
    ]
    assert rows[0] == rows[1] == rows[2]
    missing = run("predict", "--bundle", "models:/tumours@best", tmp_path / "a.png")
    assert isinstance(missing.exception, UserError)
    assert "tumours has no 'best'; there are: champion" in str(missing.exception)


def test_models_are_listed_and_shown(store, tiny_bundle):
    (version,) = json.loads(run("models", "list", "--format", "json").stdout)
    assert (version["name"], version["number"], version["aliases"]) == (
        "tumours",
        "1",
        ["challenger"],
    )
    assert json.loads(run("models", "show", "tumours", "--format", "json").stdout) == [version]
    one = json.loads(run("models", "show", "tumours:1", "--format", "json").stdout)
    assert one == version
    assert one["tags"]["btray.bundle"] == tiny_bundle.version
    assert "tumours" in run("models", "list").stdout
    assert tiny_bundle.version in run("models", "show", "tumours").stdout


def test_no_model_and_no_store(store, tmp_path):
    for arguments, message in (
        (("show", "tumors"), "no model 'tumors'; nearest: tumours"),
        (("rollback", "tumours"), "tumours has no 'champion'"),
        (("promote", "tumours", "9"), "tumours has no version 9"),
        (("list", "--tracking", tmp_path / "none"), "no tracked runs or models there"),
        (("list", "--tracking", "http://127.0.0.1:9"), "no MLflow server answers"),
    ):
        done = run("models", *arguments)
        assert isinstance(done.exception, UserError)
        assert message in str(done.exception)
