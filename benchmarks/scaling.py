"""Weak scaling of `btray train` from one host to two, one thread each, and where the rest goes.

Usage: python benchmarks/scaling.py [--images 512] [--rounds 2] [--size 160] [--batch 16] [MODEL …]
(as root; see hosts.py)

deploy/clusters/local.yaml is brought up on hosts of a network of their own, which share this
machine's cores. Every worker has one thread and `--batch` of a step's images of `--size` pixels:
  one        one worker, and so many images
  apart      two runs of one worker each, at the same time, which know nothing of one another
  two        one run of two workers on two hosts, and twice the images
`two` against twice `one` is the weak scaling, `two` against `apart` what is left of it to btray.
Of a step of `two`, in milliseconds:
  compute    the optimiser step of one worker on tensors that lie ready
  data       what batches, their augmentation and the rest of the loop add to it (`one`)
  machine    what a second run beside it adds (`apart`): shared caches and memory, the head
  together   what remains: averaging the gradients as far as it is not hidden behind computing, and
             waiting for the slower worker
  all_reduce averaging that many gradients between the hosts by gloo alone, for comparison
"""

import argparse
import json
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from hosts import CHECKOUT, Host, Laptop, rack
from measuring import btray

from btray.config import ModelConfig
from btray.core.zoo import create_model

MODELS = ("btray_cnn", "tf_efficientnet_lite0")
ALL_REDUCE = """
import sys, time, torch
import torch.distributed as dist
torch.set_num_threads(1)
rank, address, numbers = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", f"tcp://{address}:29400", rank=rank, world_size=2)
gradients = torch.zeros(numbers)
for step in range(40):
    if step == 10:
        started = time.perf_counter()
    dist.all_reduce(gradients)
print((time.perf_counter() - started) / 30)
dist.destroy_process_group()
"""


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        work = Path(temporary)
        for copies in (1, 2):
            images = options.images * copies
            btray("data", "phantom", work / f"data-{copies}", "--images", images)
        with rack(work / "rack", ("head", "one", "two")) as hosts:
            laptop = Laptop(work / "rack", hosts, cpus=1, head_cpus=1)
            with laptop.cluster(), laptop.dashboard() as url:
                step = Step(options.batch, options.size)
                for model in options.models:
                    rounds = [
                        measure(model, step, work, laptop, url, number)
                        for number in range(options.rounds)
                    ]
                    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
                    figures |= {f"{model}_{key}": value for key, value in medians.items()}
    report(figures, options.models)


class Step(NamedTuple):
    """What a worker computes at a time."""

    batch: int
    size: int


def measure(
    model: str, step: Step, work: Path, laptop: Laptop, url: str, number: int
) -> dict[str, float]:
    """Return all figures of a model, measured after one another."""

    def train(kind: str, workers: int) -> float:
        return run(laptop, url, model, step, work, f"{model}-{kind}-{number}", workers)

    one = train("one", 1)
    with ThreadPoolExecutor() as pool:
        apart = sum(pool.map(lambda side: train(side, 1), ("left", "right")))
    two = train("two", 2)
    steps = {"compute": step.batch / compute(model, step, laptop.workers[0])}
    steps |= {"one": step.batch / one, "apart": 2 * step.batch / apart, "two": 2 * step.batch / two}
    reduced = all_reduce(model, step.size, laptop.workers)
    figures = {
        "one": one,
        "apart": apart,
        "two": two,
        "weak_scaling": two / (2 * one),
        "two_vs_apart": two / apart,
        "compute_ms": 1000 * steps["compute"],
        "data_ms": 1000 * (steps["one"] - steps["compute"]),
        "machine_ms": 1000 * (steps["apart"] - steps["one"]),
        "together_ms": 1000 * (steps["two"] - steps["apart"]),
        "all_reduce_ms": 1000 * reduced,
        "step_ms": 1000 * steps["two"],
    }
    print(f"# {model}: {json.dumps(figures)}", file=sys.stderr)
    return figures


def run(
    laptop: Laptop, url: str, model: str, step: Step, work: Path, name: str, workers: int
) -> float:
    """Return a run's images a second, the first epoch and the last left out."""
    settings = {
        "data.dataset": work / f"data-{workers}",
        "data.batch_size": step.batch * workers,
        "run.storage": work / "runs",
        "run.name": name,
        "image.size": step.size,
        "model.name": model,
        "train.workers": workers,
        "train.cpus_per_worker": 1,
        "train.epochs": 6,
        "train.patience": 0,
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    laptop.python("-m", "btray", "submit", "--address", url, "train", *options)
    history = json.loads((work / "runs" / name / "history.json").read_text())
    return statistics.median(row["images_per_second"] for row in history[1:-1])


def compute(model: str, step: Step, host: Host) -> float:
    """Return images a second of the optimiser step alone, one thread, on a host."""
    script = CHECKOUT / "benchmarks" / "train_throughput.py"
    asked = f"--only {model} limit kept {step.batch} {step.size}"
    return float(host.run(f"python {script} {model} {asked}").stdout)


def all_reduce(model: str, size: int, hosts: list[Host]) -> float:
    """Return seconds of averaging a model's gradients between two hosts."""
    with torch.device("meta"):
        network = create_model(ModelConfig(name=model), 4, size)
    numbers = sum(weights.numel() for weights in network.parameters())
    where = f"{hosts[0].address} {numbers}"

    def side(rank: int) -> float:
        own = f"GLOO_SOCKET_IFNAME=eth0 python - {rank} {where}"
        return float(hosts[rank].run(f"{own} <<'END'\n{ALL_REDUCE}\nEND").stdout)

    with ThreadPoolExecutor() as pool:
        return max(pool.map(side, (0, 1)))


def report(figures: dict[str, float], models: list[str]) -> None:
    """Print the table, and the JSON line."""
    rows = [key.removeprefix(f"{models[0]}_") for key in figures if key.startswith(models[0])]
    print(f"{'':16}" + "".join(f"{model:>24}" for model in models))
    for row in rows:
        digits = 2 if row in {"weak_scaling", "two_vs_apart"} else 1
        values = (figures[f"{model}_{row}"] for model in models)
        print(f"{row:16}" + "".join(f"{value:24.{digits}f}" for value in values))
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
