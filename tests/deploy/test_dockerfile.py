"""The image's recipe, without a container engine: hadolint, and what must stand in it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from btray.version import __version__

CHECKOUT = Path(__file__).parents[2]
DEPLOY = CHECKOUT / "deploy"
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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_its_steps_make_an_environment_that_works(tmp_path):
    """Without a container engine: the same commands, in folders of the test's own.

    PyTorch's own index of CPU builds is left out, as it may not be reachable; the default one
    has the same versions.
    """
    try:
        done = subprocess.run(
            ["bash", "-euxc", script(tmp_path, "build", "cpu-environment")],
            cwd=tmp_path, env=environment(), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        command = tmp_path / "opt" / "btray" / "bin" / "btray"
        said = subprocess.run([command, "--version"], cwd="/", capture_output=True, text=True)
        assert said.stdout.strip() == __version__, said.stderr
        freeze = [command.with_name("python"), "-m", "pip", "list", "--format=freeze"]
        found = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout
        installed = {line.lower().replace("_", "-") for line in found.splitlines()}
        assert {"ray==2.60.0", "boto3==1.44.8", "torch==2.14.1"} <= installed
    finally:
        shutil.rmtree(tmp_path)  # gigabytes


def environment():
    """What pip is told here, and a Python that it may start from."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return own | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def script(root, *stages):
    """Return the stages' steps as a script that works below a folder and not at the top."""

    def below(text):
        return re.sub(r"(?<![\w.~/])/(source|wheels|opt)\b", rf"{root}/\1", text)

    lines = []
    for name in stages:
        for step in re.sub(r"\\\n", " ", stage(name)).splitlines():
            what, _, rest = step.partition(" ")
            rest = below(rest)
            if what == "RUN":
                plain = rest.replace("--index-url https://download.pytorch.org/whl/cpu", "")
                lines.append(f"( {plain} )")  # or else -e would not see a failure before &&
            elif what == "WORKDIR":
                lines += [f"mkdir -p {rest}", f"cd {rest}"]
            elif what == "ENV":
                lines += [f"export {pair}" for pair in rest.split()]
            elif what == "COPY":
                *sources, target = rest.split()
                lines.append(f"mkdir -p $(dirname {target}x)")
                lines += [f"cp -r {CHECKOUT / source} {target}" for source in sources]
            else:
                assert not what or what.startswith("#"), step
    return "\n".join(lines)
