"""What a run survives, and that it then goes on from the very step."""

import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
from ray.train import TrainingFailedError

from btray.errors import UserError
from btray.train.changes import Changes
from btray.train.trainer import Stopped, fit, resume

pytestmark = pytest.mark.cluster


def scores(history):
    """A history without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in history]


def processes(name: str) -> list[psutil.Process]:
    """The live processes of Ray's below this one that have a name."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if name in " ".join(child.cmdline())]


class AtStep:
    """A display that does something once, at the first news of a step of an epoch."""

    def __init__(self, epoch, action):
        self.epoch, self.action, self.done = epoch, action, False
        self.attempts, self.changed = [], []

    def show(self, update):
        if update["kind"] == "attempt":
            self.attempts.append((update["epoch"], update["step"]))
        if update["kind"] == "changed":
            self.changed.append(update["reason"])
        if update["kind"] == "step" and update["epoch"] == self.epoch and not self.done:
            self.done = True
            self.action()


@pytest.fixture(scope="module")
def undisturbed(cluster, config_in, tmp_path_factory):
    return fit(config_in(tmp_path_factory.mktemp("undisturbed"), **{"train.epochs": 60}))


def same(run, other):
    return scores(run.history) == scores(other.history) and all(
        torch.equal(weights, other.bundle.weights[name])
        for name, weights in run.bundle.weights.items()
    )


def test_a_worker_told_to_go_makes_a_checkpoint_first(undisturbed, make_config):
    display = AtStep(1, lambda: processes("RayTrainWorker")[0].terminate())
    run = fit(make_config("told", **{"train.epochs": 60, "train.max_failures": 1}), display)
    assert display.attempts[1] > (1, 0)  # not from the last epoch's end
    assert same(run, undisturbed)


def test_a_command_told_to_stop_makes_a_checkpoint_first(undisturbed, make_config):
    display = AtStep(1, lambda: os.kill(os.getpid(), 15))
    config = make_config("stopped", **{"train.epochs": 60})
    with pytest.raises(Stopped) as stopped:
        fit(config, display)
    again = AtStep(9, bool)
    run = resume(str(stopped.value), again)
    assert again.attempts[0] > (1, 0)
    assert same(run, undisturbed)


def test_the_loss_of_the_controller_is_not_the_end(undisturbed, make_config):
    # All there are: that of an earlier run may not be gone yet.
    display = AtStep(1, lambda: [one.kill() for one in processes("TrainController")])
    run = fit(make_config("headless", **{"train.epochs": 60}), display)
    assert len(display.attempts) == 2
    assert same(run, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 160 MiB, and a way to leave nothing of it free."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Write until there is no space left."""
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free)


def test_a_full_disk_costs_no_good_checkpoint(undisturbed, config_in, small_disk):
    config = config_in(small_disk, "full", **{"train.epochs": 60, "train.max_failures": 0})
    with pytest.raises((TrainingFailedError, UserError), match="No space left"):
        fit(config, AtStep(2, lambda: fill(small_disk)))
    (small_disk / "filler").unlink()
    again = AtStep(9, bool)
    run = resume(f"{config.run.storage}/full", again)
    assert again.attempts[0] >= (1, 0)
    assert same(run, undisturbed)


def test_a_run_goes_on_with_changed_epochs(cluster, make_config):
    config = make_config("longer", **{"train.epochs": 3, "train.max_failures": 0})
    with pytest.raises(TrainingFailedError):
        fit(config, AtStep(1, lambda: processes("RayTrainWorker")[0].kill()))
    display = AtStep(9, bool)
    changes = Changes({}, ["train.epochs=4", "train.workers=1"])
    run = resume(f"{config.run.storage}/longer", display, changes=changes)
    assert len(run.history) == 4
    assert len(display.changed) == 2
    assert run.history[-1]["learning_rate"] == 0.0
