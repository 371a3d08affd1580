import json

from typer.testing import CliRunner

from btray.cli.config import app
from btray.config import Config, load_config
from btray.tune.settings import load_sweep


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_show_prints_what_load_reads_back(tmp_path):
    shown = run("show", "--set", "data.batch_size=64", "--set", "seed=7")
    (tmp_path / "all.yaml").write_text(shown.stdout)
    config = load_config(tmp_path / "all.yaml")
    assert (config.data.batch_size, config.seed) == (64, 7)


def test_schema_describes_every_section():
    schema = json.loads(run("schema").stdout)
    assert schema == Config.model_json_schema()
    assert set(schema["properties"]) == set(Config.model_fields)


def test_the_shipped_configurations_are_valid(request):
    files = sorted((request.config.rootpath / "configs").glob("*.yaml"))
    assert {file.stem for file in files} >= {"quick", "reference"}
    for file in files:
        if file.stem == "sweep":
            assert load_sweep(file, []).tune.trials > 1
        else:
            assert run("show", "--config", file).exit_code == 0
