"""What a sweep finds for its epochs, and what Ray Tune costs.

Usage: python benchmarks/sweep.py [--real 2400] [--repeats 3] [--trials 32] [--epochs 16]
                                  [--parts overhead proxy real]

search    the same space of seven settings of our compact CNN, searched three ways in one run:
            full    random search, every trial at full length: the limit
            asha    the same points, ended early by ASHA
            tpe     as many trials, chosen by TPE and ended early by ASHA: what `btray tune` does
          on a synthetic proxy, once a seed, and with BTRAY_DATA on some of its real slices
overhead  the same trials of one sweep trained back to back without Ray Tune, all cores each,
          against `btray tune`; and the seconds to a trial's first step: of the first ones from
          the sweep's start, of the others from the end of the trial that made room

Scores are of validation: best macro-F1 of each search. Nothing here says how good a model is.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from btray.cluster import connect, local_cores
from btray.config import resolve_as
from btray.data.dataset import Dataset
from btray.data.decoding import decode_rows
from btray.data.importer import ImportOptions, import_dataset
from btray.data.sources.phantom_source import PhantomSource
from btray.train.learner import Learner, Rank
from btray.tune.outcome import Trial
from btray.tune.settings import SweepConfig
from btray.tune.space import merged
from btray.tune.sweep import Sweep, search

SPACE = {
    "train.learning_rate": "loguniform(1e-4, 3e-2)",
    "train.weight_decay": "loguniform(1e-3, 0.3)",
    "train.label_smoothing": "quniform(0, 0.2, 0.05)",
    "train.schedule": "choice([cosine, one_cycle])",
    "train.optimizer": "choice([adamw, sgd])",
    "model.dropout": "uniform(0, 0.6)",
    "augment.rotation": "uniform(0, 30)",
}
PROXY, PROXY_SPLITS = 2100, {"validation": 0.43, "test": 0.057}
SPLITS = {"validation": 0.45, "test": 0.05}
"""Much validation: the best of many scores of few rows is mostly luck, of which the search with
the most epochs has the most."""
EARLY = {"scheduler": "asha"}
"""With btray's own defaults: one in four goes on, none ends before its first epoch."""
WAYS = {
    "full": {"search": "random", "scheduler": "none"},
    "asha": {"search": "random", **EARLY},
    "tpe": {"search": "tpe", **EARLY},
}


def main() -> None:
    """Measure, print the tables, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=int, default=2400, help="real slices searched on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--parts", nargs="+", default=["overhead", "proxy", "real"])
    options = parser.parse_args()
    figures: dict[str, Any] = {"cores": local_cores(), "trials": options.trials}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        connect()
        import_dataset(PhantomSource(PROXY), str(work / "proxy"), ImportOptions(**PROXY_SPLITS))
        if "overhead" in options.parts:
            figures["overhead"] = overhead(work)
            print(f"# overhead: {json.dumps(figures['overhead'])}", file=sys.stderr, flush=True)
        if "proxy" in options.parts:
            seeds = range(options.repeats)
            figures["proxy"] = [searches(work, "proxy", 32, seed, options) for seed in seeds]
        if "BTRAY_DATA" in os.environ and "real" in options.parts:
            real_slices(work, options.real)
            figures["real"] = searches(work, "real", 96, 0, options)
    report(figures)


def config_of(
    work: Path, data: str, size: int, seed: int, name: str, **tune: object
) -> SweepConfig:
    """Return a sweep's settings."""
    epochs = tune.pop("epochs")
    tree = {
        "seed": seed,
        "image": {"size": size},
        "data": {"dataset": str(work / data), "batch_size": 16},
        "train": {"epochs": epochs, "patience": 0, "warmup_epochs": 0.5, "ema": 0.98},
        "run": {"storage": str(work / "sweeps"), "name": name},
        "tracking": {"enabled": False},
        "tune": {"space": SPACE, **tune},
    }
    return resolve_as(SweepConfig, tree)


def searches(
    work: Path, data: str, size: int, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Search three ways with one seed; return score, epochs and seconds of each."""
    found: dict[str, Any] = {"seed": seed}
    for way in options.ways:
        settings = WAYS[way]
        name = f"{data}-{seed}-{way}"
        common = {"trials": options.trials, "epochs": options.epochs}
        done = search(config_of(work, data, size, seed, name, **common, **settings))
        outcome = done.outcome
        best = outcome.best
        assert best is not None
        found[way] = {
            "best": outcome.score(best),
            "epochs": outcome.epochs_spent(),
            "seconds": outcome.seconds,
            "failed": outcome.count("failed"),
        }
    for way in set(options.ways) - {"full"}:
        found[f"{way}_behind"] = 100 * (found["full"]["best"] - found[way]["best"])
        found[f"{way}_epochs"] = found[way]["epochs"] / found["full"]["epochs"]
    print(f"# {data}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def overhead(work: Path) -> dict[str, float]:
    """Return btray's rate over that of the same trials without Tune, and the waits."""
    ratios, cold, warm = [], [], []
    for number in range(3):
        name = f"overhead-{number}"
        settings = {"trials": 8, "epochs": 6, "search": "random", "scheduler": "none"}
        config = config_of(work, "proxy", 96, 0, name, **settings)
        clock, began = Clock(), time.perf_counter()
        done = search(config, clock)
        tuned = time.perf_counter() - began
        first, others = waits_of(done, clock)
        cold, warm = cold + first, warm + others
        alone = back_to_back(config, done)
        ratios.append(alone / tuned)
    return {
        "throughput_ratio": statistics.median(ratios),
        "first_step_seconds_of_the_first": max(cold),
        "first_step_seconds_median": statistics.median(warm),
        "first_step_seconds_most": max(warm),
    }


class Clock:
    """Notes when the sweep began and when each trial ended."""

    def __init__(self) -> None:
        self.began = 0.0
        self.ended: dict[str, float] = {}

    def sweep(self, folder: str, plan: str) -> None:  # noqa: ARG002
        """Begin."""
        self.began = time.time()

    def trial(self, trial: Trial, trials: dict[str, Trial]) -> None:  # noqa: ARG002
        """Take note of an end."""
        if trial.state in ("finished", "stopped", "failed"):
            self.ended.setdefault(trial.id, time.time())


def waits_of(done: Sweep, clock: Clock) -> tuple[list[float], list[float]]:
    """Return the seconds to every trial's first step, of the first ones and of the others.

    From the sweep's start, processes and all that they load included, or from the end of the
    trial that made room.
    """
    assert done.folder.local is not None
    lines = [path.read_text().splitlines()[0] for path in done.folder.local.glob("*/result.json")]
    steps = sorted(json.loads(line)["first_step_at"] for line in lines)
    ends = sorted(clock.ended.values())
    at_once = min(local_cores(), len(done.outcome.trials))
    cold = [step - clock.began for step in steps[:at_once]]
    return cold, [step - end for step, end in zip(steps[at_once:], ends, strict=False)]


def back_to_back(config: SweepConfig, done: Sweep) -> float:
    """Train the same points one after another in this process; return the seconds."""
    dataset = Dataset.open(config.data.dataset or "")
    began = time.perf_counter()
    blocks = decode_rows(dataset, ("train", "validation"), config.image, {})
    names = dataset.manifest.class_names
    for trial in done.outcome.trials:
        settings = merged(config.base(), trial.point)
        learner = Learner(
            settings, names, local_cores(), blocks, None, None, Rank(0, 1, torch.device("cpu"))
        )
        while not learner.finished:
            learner.epoch(lambda _done, _loss: None)
            with tempfile.TemporaryDirectory() as folder:  # a sweep keeps checkpoints, too
                learner.save(Path(folder))
                learner.save_answers(Path(folder))
    return time.perf_counter() - began


def real_slices(work: Path, count: int) -> None:
    """Import some of the real slices, drawn from each class."""
    from btray.data.sources.imagefolder import ImageFolder

    folder = work / "some"
    source = Path(os.environ["BTRAY_DATA"])
    rng = np.random.default_rng(0)
    root = source / "brain-tumor-mri" / "Training"
    for label in sorted(path for path in root.iterdir() if path.is_dir()):
        (folder / label.name).mkdir(parents=True)
        pictures = sorted(label.iterdir())
        for index in rng.choice(len(pictures), count // 4, replace=False):
            (folder / label.name / pictures[index].name).symlink_to(pictures[index].resolve())
    import_dataset(ImageFolder(str(folder)), str(work / "real"), ImportOptions(**SPLITS))


def report(figures: dict[str, Any]) -> None:
    """Print what was found, for people and for programs."""
    print(
        f"{'data':8} {'seed':>4} {'way':5} {'macro-F1':>9} {'behind':>7} {'epochs':>7} {'share':>6}"
    )
    rows = [("proxy", one) for one in figures.get("proxy", [])]
    rows += [("real", figures["real"])] if "real" in figures else []
    for data, found in rows:
        for way in (way for way in WAYS if way in found):
            share = found[way]["epochs"] / found["full"]["epochs"]
            behind = 100 * (found["full"]["best"] - found[way]["best"])
            print(
                f"{data:8} {found['seed']:4} {way:5} {found[way]['best']:9.4f} {behind:7.2f} "
                f"{found[way]['epochs']:7} {share:6.2f}"
            )
    for name, value in figures.get("overhead", {}).items():
        print(f"{name:28} {value:.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
