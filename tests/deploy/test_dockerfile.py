"""The image's recipe, without a container engine: hadolint, and what must stand in it."""

import re
import subprocess
import sys
from pathlib import Path

import ray

from btray.version import __version__

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXT = (DEPLOY / "Dockerfile").read_text()


def stage(name):
    """Return the lines of a stage."""
    return re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", TEXT, re.M | re.S).group(1)


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_both_targets_are_not_root_and_carry_no_build_tools():
    for target in ("cpu", "cuda"):
        assert f"COPY --from={target}-environment /opt/btray /opt/btray" in stage(target)
        assert "USER 1000:1000" in stage(target)
        assert "RUN" not in stage(target)
    assert "HEALTHCHECK" in stage("runtime")


def test_everything_is_pinned():
    for target in ("cpu", "cuda"):
        installed = stage(f"{target}-environment")
        assert f"'btray[weights]=={__version__}'" in installed
        assert f"'ray[default]=={ray.__version__}'" in installed
    pins = (DEPLOY / "constraints.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[a-z0-9-]+==[^=]+", pin) for pin in pins)
    assert f"ray=={ray.__version__}" in pins
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-", TEXT, re.M)
