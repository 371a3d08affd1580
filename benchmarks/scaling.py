"""Weak scaling of `btray train` from one host to two, one thread each, and where the rest goes.

Usage: python benchmarks/scaling.py [--images 512] [--rounds 2] [--size 160] [--batch 16] [MODEL …]
(as root; see hosts.py)

deploy/clusters/local.yaml is brought up on hosts of a network of their own, each with one core of
this machine and no other: the cluster's head and the first training host on one, the second host on
the other. So a host's training shares its core with what Ray runs there, as it does on a machine
of its own. Every worker has one thread and `--batch` of a step's images of `--size` pixels:
  one        the head and one host, and so many images
  two        the head and two hosts, one run of two workers, and twice the images
`two` against twice `one` is the weak scaling. Of a step of `two`, in milliseconds:
  compute    the optimiser step of one worker on tensors that lie ready
  rest       what batches, their augmentation and Ray's processes on the core add to it (`one`)
  machine    what the same steps on the other core at the same time add: shared caches and memory
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
    step = Step(options.batch, options.size)
    rounds: dict[str, list[dict[str, float]]] = {model: [] for model in options.models}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        work = Path(temporary)
        for copies in (1, 2):
            images = options.images * copies
            btray("data", "phantom", work / f"data-{copies}", "--images", images)
        for number in range(options.rounds):
            one = measure(1, options.models, step, work, f"rack-{number}-1")
            two = measure(2, options.models, step, work, f"rack-{number}-2")
            for model in options.models:
                rounds[model].append(taken_apart(step, one[model], two[model]))
                print(f"# {model}: {json.dumps(rounds[model][-1])}", file=sys.stderr, flush=True)
    figures = {
        f"{model}_{key}": statistics.median(one[key] for one in found)
        for model, found in rounds.items()
        for key in found[0]
    }
    report(figures, options.models)


class Step(NamedTuple):
    """What a worker computes at a time."""

    batch: int
    size: int


class Rates(NamedTuple):
    """Images a second of a cluster with one training host, or two; and seconds."""

    trained: float
    computed: float
    """A host's, while the others compute too."""
    reduced: float


def measure(count: int, models: list[str], step: Step, work: Path, name: str) -> dict[str, Rates]:
    """Return every model's rates on the head and so many hosts."""
    found = {}
    with rack(work / name, ("head", "one", "two")[: 1 + count], (0, 0, 1)[: 1 + count]) as hosts:
        laptop = Laptop(work / name, hosts, cpus=1, head_cpus=1)
        with laptop.cluster(), laptop.dashboard() as url:
            for model in models:
                trained = run(laptop, url, model, step, work, f"{name}-{model}", count)
                print(f"# {count}: {trained:.1f} images/s", file=sys.stderr, flush=True)
                with ThreadPoolExecutor() as pool:
                    computing = [pool.submit(compute, model, step, h) for h in laptop.workers]
                    computed = min(one.result() for one in computing)
                reduced = all_reduce(model, step.size, laptop.workers) if count > 1 else 0.0
                found[model] = Rates(trained, computed, reduced)
    return found


def taken_apart(step: Step, one: Rates, two: Rates) -> dict[str, float]:
    """Return weak scaling, and where a step's time goes."""
    milliseconds = 1000 * step.batch
    alone, beside = milliseconds / one.computed, milliseconds / two.computed
    trained, together = milliseconds / one.trained, 2 * milliseconds / two.trained
    return {
        "one": one.trained,
        "two": two.trained,
        "weak_scaling": two.trained / (2 * one.trained),
        "step_ms": together,
        "compute_ms": alone,
        "rest_ms": trained - alone,
        "machine_ms": beside - alone,
        "together_ms": together - trained - (beside - alone),
        "all_reduce_ms": 1000 * two.reduced,
    }


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
        digits = 2 if row == "weak_scaling" else 1
        values = (figures[f"{model}_{row}"] for model in models)
        print(f"{row:16}" + "".join(f"{value:24.{digits}f}" for value in values))
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
