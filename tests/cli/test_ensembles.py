import pytest
from typer.testing import CliRunner

from btray.cli import app
from btray.core.onnx_bundle import load_onnx_bundle
from btray.errors import UserError


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ensemble", "a", "b", "--weights", "2,x", "--data", "d", "--out", "o"), "--weights 2,x"),
        (("ensemble", "a", "b", "--data", "/nowhere", "--out", "o"), "no btray data set"),
        (("export", "a", "--data", "/nowhere", "--out", "o"), "give --half"),
        (("export", "a", "--half", "--data", "/nowhere", "--out", "o"), "no btray data set"),
        (("export", "a", "o", "--half"), "give --data"),
        (("export", "a", "o", "--half", "--onnx"), "one of both"),
        (("export", "a", "--onnx"), "give the folder of the new bundle"),
        (("export", "a", "o", "--out", "p", "--onnx"), "give the folder of the new bundle once"),
        (("export", "/nowhere", "o", "--onnx"), "no bundle"),
        (("distill", "a", "--data", "/nowhere"), "no btray data set"),
        (("distill", "a", "--data", "/nowhere", "--set", "train.distillation=2"), "distillation"),
    ],
)
def test_mistakes(arguments, message):
    done = run("models", *arguments)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


@pytest.mark.parametrize("option", [(), ("--out",)])
def test_an_onnx_bundle_is_written(tiny_bundle, tmp_path, option):
    done = run("models", "export", tiny_bundle.uri, *option, tmp_path / "onnx", "--onnx")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'onnx'}\n")
    assert load_onnx_bundle(str(tmp_path / "onnx")).card == tiny_bundle.card


def test_distilling_is_training_with_a_teacher(monkeypatch):
    seen = []

    def note(config):
        seen.append(config)
        raise UserError("seen")

    monkeypatch.setattr("btray.train.inputs.open_training_data", note)
    run("models", "distill", "runs/a: b", "--data", "d", "--name", "s", "--set", "train.epochs=3")
    (config,) = seen
    assert (config.train.teacher, config.data.dataset) == ("runs/a: b", "d")
    assert (config.run.name, config.train.epochs) == ("s", 3)


def test_cross_validation_asks_for_folds_before_anything_starts(monkeypatch):
    seen = []

    def note(config, folds):
        seen.append(folds)
        raise UserError("seen")

    monkeypatch.setattr("btray.train.inputs.open_folds", note)
    done = run("train", "--folds", "5", "--data", "d")
    assert seen == [5]
    assert "starting" not in done.stderr
    both = run("train", "--folds", "5", "--resume", "runs/a")
    assert "leave the others out" in str(both.exception)
