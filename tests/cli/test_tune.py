import pytest
from typer.testing import CliRunner

from btray.cli import app
from btray.core.bundle import load_bundle
from btray.errors import UserError
from btray.registry.client import locate, open_client
from btray.registry.models import Registry


def run(*arguments):
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        """
seed: 1
image: {size: 32}
data: {batch_size: 16}
train: {epochs: 2, patience: 0}
tune:
  trials: 2
  search: random
  scheduler: none
  space:
    train.learning_rate: loguniform(1e-3, 1e-2)
"""
    )
    return path


@pytest.mark.cluster
def test_a_sweep_is_reported_tracked_and_registered(cluster, config, dataset_path, tmp_path):
    storage = tmp_path / "sweeps"
    options = ("--set", f"run.storage={storage}", "--name", "s", "--data", dataset_path)
    result = run("--config", config, *options, "--register", "brain")
    assert result.exit_code == 0, result.stderr
    assert "2 trials at a time" in result.stderr
    assert result.stderr.count("finished after 2/2 epochs") == 2
    assert "only the test split says how good it is" in result.stderr
    bundle = load_bundle(result.stdout.strip())
    uri = locate(None, str(storage))
    (version,) = Registry(uri).versions("brain")
    assert version.aliases == ["challenger"]
    assert version.tags["btray.bundle"] == bundle.version
    assert (storage / "s" / "evaluation-test" / "metrics.json").is_file()
    client = open_client(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "btray"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags.get("btray.sweep") == "s"]
    nested = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(nested) == 2
    for one in nested:
        assert one.info.status == "FINISHED"
        assert set(one.data.params) == {"train.learning_rate"}
        history = client.get_metric_history(one.info.run_id, "val_macro_f1")
        assert [point.step for point in history] == [1, 2]
    again = run("--resume", storage / "s")
    assert isinstance(again.exception, UserError)
    assert "is finished" in str(again.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to search"),
        (("--resume", "/nowhere"), "no sweep to resume"),
        (("--resume", "/nowhere", "--name", "x"), "leave the others out"),
        (("--set", "tune.space={train.epochs: 'randint(1, 3)'}"), r"data\.dataset is not set"),
        (("--set", "tune.trails=3"), r"tune\.trails; did you mean tune\.trials"),
        (("--set", "tune.scheduler=pbt", "--set", "tune.search=tpe"), "set tune.search=random"),
    ],
)
def test_mistakes(arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise result.exception
