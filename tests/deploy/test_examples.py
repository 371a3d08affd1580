"""The recipes load, and their commands exist."""

import re
import subprocess
from pathlib import Path

import pytest

from btray.cli.submit import COMMANDS
from btray.config import load_config
from btray.tune.settings import load_sweep
from btray.tune.space import Space

JOBS = Path(__file__).parents[2] / "examples" / "jobs"


def test_the_settings_load():
    assert load_config(JOBS / "train.yaml").train.gpu == "always"
    sweep = load_sweep(JOBS / "sweep.yaml", [])
    assert Space.parse(sweep.tune.space, sweep.base())


@pytest.mark.parametrize("file", ["README.md", "nightly.sh"])
def test_every_command_can_be_submitted(file):
    text = (JOBS / file).read_text()
    options = r"(?: --(?:secret|address) \S+| --detach)*"
    commands = re.findall(rf"btray submit{options} ([a-z]+)", text)
    assert len(commands) >= 2
    assert set(commands) <= set(COMMANDS)
    for path in re.findall(r"examples/jobs/[a-z.]+", text):
        assert (JOBS.parents[1] / path).is_file()


def test_the_script_is_one_for_bash():
    subprocess.run(["bash", "-n", JOBS / "nightly.sh"], check=True)
    assert JOBS.joinpath("nightly.sh").stat().st_mode & 0o111
