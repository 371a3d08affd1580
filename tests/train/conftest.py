"""Runs on a data set any network learns in a few steps."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from btray.config import Config, resolve_config


@pytest.fixture(scope="session")
def config_in(dataset_path: Path) -> Callable[..., Config]:
    def make(folder: Path, name: str = "run", **settings: object) -> Config:
        tree = {
            "seed": 1,
            "image": {"size": 32},
            "data": {"dataset": str(dataset_path), "batch_size": 16},
            "train": {"epochs": 3, "workers": 2, "patience": 0},
            "run": {"storage": str(folder / "runs"), "name": name},
        }
        return resolve_config(tree, [f"{key}={value}" for key, value in settings.items()])

    return make


@pytest.fixture
def make_config(config_in: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    return partial(config_in, tmp_path)


class WithinKiller:
    """A display that kills one training worker once, past a checkpoint within an epoch."""

    def __init__(self, storage: Path, epoch: int, step: int) -> None:
        self.storage, self.epoch, self.step = storage, epoch, step
        self.killed = False
        self.attempts: list[tuple[int, int]] = []

    def show(self, update: dict[str, object]) -> None:
        if update["kind"] == "attempt":
            self.attempts.append((int(update["epoch"]), int(update["step"])))
        if update["kind"] == "step" and update["epoch"] == self.epoch and not self.killed:
            while self.reached() < (self.epoch, self.step):
                time.sleep(0.01)
            self.killed = True
            training_processes()[0].kill()

    def reached(self) -> tuple[int, int]:
        """The newest checkpoint's epoch and step."""
        found = [(-1, -1)]
        for path in self.storage.glob("*/checkpoint_*/progress.json"):
            with suppress(FileNotFoundError, ValueError):  # being written, or just removed
                progress = json.loads(path.read_text())
                found.append((progress["next_epoch"], progress["next_step"]))
        return max(found)


class Killer:
    """A display that kills one training worker once, in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.killed = False
        self.attempts: list[int] = []

    def show(self, update: dict[str, object]) -> None:
        if update["kind"] == "attempt":
            self.attempts.append(int(update["epoch"]))
        if update["kind"] == "step" and update["epoch"] >= self.epoch and not self.killed:
            self.killed = True
            training_processes()[0].kill()


def training_processes() -> list[psutil.Process]:
    """The live worker processes of Ray Train below this process."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(cmdline(child))]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


@pytest.fixture
def killer() -> type[Killer]:
    return Killer


@pytest.fixture
def within_killer() -> type[WithinKiller]:
    return WithinKiller
