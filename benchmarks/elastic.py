"""A run that loses a host and takes it back, against undisturbed runs of several seeds.

Usage: python benchmarks/elastic.py [--images 1000] [--epochs 80] [--seeds 3]  (root; see hosts.py)

deploy/clusters/local.yaml is brought up on a head and two hosts of a network of their own.
`btray submit … train` with one to two workers runs there; at its fifth epoch the network of a host
that trains is cut, and restored once the run goes on with the other one. Then the undisturbed
runs: the same settings but for the CPUs counted for a worker, two workers on this machine, one run
a seed (the first is the disturbed run's). Scores are of validation in the last epoch.
"""

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from hosts import Laptop, rack
from measuring import btray

SCORES = ("accuracy", "macro_f1", "loss")
PATIENCE_S = 900


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        work = Path(temporary)
        btray("data", "phantom", work / "data", "--images", options.images)
        with rack(work / "rack", ("head", "one", "two")) as hosts:
            laptop = Laptop(work / "rack", hosts, cpus=2, head_cpus=1)
            with laptop.cluster(), laptop.dashboard() as url:
                command = arguments(work, "disturbed", options.epochs, 0, "1..2")
                figures = disturbed(laptop, url, command)
        rows = [scores(work, "disturbed")]
        for seed in range(options.seeds):
            btray(*arguments(work, f"seed-{seed}", options.epochs, seed, "2"))
            rows.append(scores(work, f"seed-{seed}"))
    print(f"{'':16}" + "".join(f"{score:>12}" for score in SCORES))
    for name, row in zip(["disturbed", *range(options.seeds)], rows, strict=True):
        title = name if name == "disturbed" else f"seed {name}"
        print(f"{title:16}" + "".join(f"{row[score]:12.4f}" for score in SCORES))
    print(json.dumps({**figures, "disturbed": rows[0], "undisturbed": rows[1:]}))


def arguments(work: Path, name: str, epochs: int, seed: int, workers: str) -> list[object]:
    """Return the arguments of `btray` for one run."""
    settings = {
        "data.dataset": work / "data",
        "data.batch_size": 32,
        "run.storage": work / "runs",
        "run.name": name,
        "image.size": 64,
        "seed": seed,
        "train.workers": workers,
        "train.cpus_per_worker": 2 if workers == "1..2" else 1,
        "train.epochs": epochs,
        "train.patience": 0,
    }
    return [
        "train",
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]


def disturbed(laptop: Laptop, url: str, command: list[object]) -> dict[str, float]:
    """Submit a run, take a host away, give it back; return the epochs these came in."""
    submit = [sys.executable, "-m", "btray", "submit", "--address", url, *map(str, command)]
    said: list[str] = []
    lines: queue.Queue[str] = queue.Queue()
    with subprocess.Popen(
        submit, cwd=laptop.home, env=laptop.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip

        def listen() -> None:
            for line in process.stdout or ():
                lines.put(line)
            lines.put("")

        def until(part: str) -> float:
            """Wait for a line; return the last epoch that was done by then."""
            while not said or part not in said[-1]:
                try:
                    said.append(lines.get(timeout=PATIENCE_S))
                except queue.Empty:
                    said.append("")
                if not said[-1]:
                    process.kill()
                    sys.exit(f"{part!r} was not said: {''.join(said)}")
            done = [line for line in said if line.startswith("epoch ")]
            said.append("\n")  # the next wait is for another line
            return float(done[-1].split()[1].split("/")[0]) if done else 0.0

        threading.Thread(target=listen, daemon=True).start()
        try:
            until("epoch   5/")
            lost = laptop.workers[0]  # both hosts train
            lost.connect(up=False)
            try:
                figures = {"epoch_when_lost": 5.0, "epoch_when_missed": until("now 1 workers")}
                until("epoch ")
            finally:
                lost.connect(up=True)
            figures["epoch_when_back"] = until("now 2 workers")
            until("/bundle")
            process.wait(PATIENCE_S)
        finally:
            process.kill()
    if process.returncode:
        sys.exit("".join(said))
    epochs = [line.split()[1] for line in said if line.startswith("epoch ")]
    figures["epochs_done_again"] = float(len(epochs) - len(set(epochs)))
    return figures


def scores(work: Path, name: str) -> dict[str, float]:
    """Return a run's scores of validation in its last epoch."""
    last = json.loads((work / "runs" / name / "history.json").read_text())[-1]
    return {score: last[f"val_{score}"] for score in SCORES}


if __name__ == "__main__":
    main()
