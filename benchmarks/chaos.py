"""One run left alone and the same run with a worker killed ten times: what is lost.

Usage: python benchmarks/chaos.py [--images 400] [--epochs 12] [--kills 10] [--seed 0]

A training worker gets SIGKILL at the first news of a step at or past each of `kills` steps drawn
from the seed. A resumed run repeats the undisturbed one to the bit on a CPU, so their metrics are
to be equal, and no attempt may begin before the last checkpoint that was recorded at the kill.
Nothing is kept.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from btray.config import Config, resolve_config
from btray.data.dataset import Dataset
from btray.data.importer import run_import
from btray.data.sources.phantom_source import PhantomSource
from btray.train.board import Update
from btray.train.checkpoints import RECORD
from btray.train.trainer import fit

_BATCH = 16
Place = tuple[int, int]
"""An epoch, and the steps of it that are taken."""


class Chaos:
    """A display that kills a training worker past each of some steps of the whole run."""

    def __init__(self, folder: Path, points: list[int]) -> None:
        self.folder, self.points = folder, points
        self.kills: list[Place] = []
        self.recorded: list[Place] = []
        """The last checkpoint at each kill."""
        self.begun: list[Place] = []

    def show(self, update: Update) -> None:
        """Kill, if it is time to."""
        if update["kind"] == "attempt":
            self.begun.append((update["epoch"], update["step"]))
        # Not again before the group that replaces the last one's has begun.
        if update["kind"] != "step" or len(self.begun) <= len(self.kills) or not self.points:
            return
        if update["epoch"] * update["steps"] + update["step"] >= self.points[0]:
            self.points.pop(0)
            self.recorded.append(recorded(self.folder))
            self.kills.append((update["epoch"], update["step"]))
            workers()[len(self.kills) % len(workers())].kill()


def recorded(folder: Path) -> Place:
    """Return where the last recorded checkpoint is."""
    try:
        record = json.loads((folder / RECORD).read_text())
        latest = folder / record["latest_checkpoint_result"]["checkpoint_dir_name"]
        progress = json.loads((latest / "progress.json").read_text())
    except (FileNotFoundError, ValueError, TypeError):  # none yet, or being written
        return 0, 0
    return progress["next_epoch"], progress["next_step"]


def workers() -> list[psutil.Process]:
    """Return the training processes below this one."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def configure(work: Path, name: str, options: argparse.Namespace) -> Config:
    """Return the settings both runs share."""
    return resolve_config(
        {
            "image": {"size": 48},
            "data": {"dataset": str(work / "dataset"), "batch_size": _BATCH},
            "train": {
                "epochs": options.epochs,
                "patience": 0,
                "workers": 2,
                "checkpoint_every": 5,
                "max_failures": options.kills + 2,
            },
            "run": {"storage": str(work / "runs"), "name": name},
        }
    )


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run both, and return all figures."""
    run_import(PhantomSource(options.images), str(work / "dataset"))
    started = time.perf_counter()
    calm = fit(configure(work, "calm", options))
    between = time.perf_counter()
    train = Dataset.open(str(work / "dataset")).count("train")
    steps = options.epochs * (train // _BATCH)
    rng = np.random.default_rng(options.seed)
    points = sorted(rng.choice(np.arange(2, steps * 9 // 10), options.kills, replace=False))
    chaos = Chaos(work / "runs" / "disturbed", [int(point) for point in points])
    disturbed = fit(configure(work, "disturbed", options), chaos)
    ended = time.perf_counter()
    pairs = list(zip(chaos.recorded, chaos.begun[1:], strict=False))
    last, other = calm.history[-1], disturbed.history[-1]
    names = ("train_loss", "val_loss", "val_accuracy", "val_macro_f1")
    return {
        "kills": len(chaos.kills),
        "attempts": len(chaos.begun),
        "killed_at": [list(place) for place in chaos.kills],
        "epochs_lost_beyond_checkpoint": sum(max(0, was[0] - now[0]) for was, now in pairs),
        "resumed_before_checkpoint": sum(now < was for was, now in pairs),
        **{f"undisturbed_{name}": last[name] for name in names},
        **{f"disturbed_{name}": other[name] for name in names},
        **{f"difference_{name}": abs(last[name] - other[name]) for name in names},
        "undisturbed_seconds": between - started,
        "disturbed_seconds": ended - between,
    }


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        figures = measure(Path(temporary), options)
    for key, value in figures.items():
        print(f"{key:32}{value!s:>24}")
    print(json.dumps(figures))
    sys.exit(figures["epochs_lost_beyond_checkpoint"] > 0 or figures["kills"] < options.kills)


if __name__ == "__main__":
    main()
