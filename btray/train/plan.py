"""How a run is laid over a cluster: workers, cores, GPUs; and whether they are there."""

from dataclasses import dataclass, replace

import ray
from ray.train import ScalingConfig

from btray.cluster import usable_cores
from btray.config import TrainConfig
from btray.errors import UserError

RESIZE_INTERVAL = 60.0
"""Seconds between two looks whether a node has joined that more workers find room on."""
MAX_DEFAULT_CPUS = 8
"""Cores a worker gets at most unless told otherwise: past that a step gains little."""


class Shortage(UserError):  # noqa: N818 - as UserError's other kinds
    """The cluster has too few resources now: others may join it."""


@dataclass(frozen=True)
class Placement:
    """Resources of every training worker."""

    workers: int
    """The most there are at a time."""
    cpus: int
    gpu: bool
    fewest: int | None = None
    """Where their number may change: the fewest that go on."""

    def scaling(self) -> ScalingConfig:
        """Return the same for Ray Train."""
        return ScalingConfig(
            num_workers=self.workers if self.fewest is None else (self.fewest, self.workers),  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL,  # type: ignore[call-arg]
            use_gpu=self.gpu,
            resources_per_worker={"CPU": self.cpus, **({"GPU": 1} if self.gpu else {})},
        )


def place(config: TrainConfig) -> Placement:
    """Fit the workers to the connected cluster.

    Raises:
        Shortage: more cores or GPUs asked for than the cluster has.

    """
    fewest, most = config.worker_range
    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0))
    use_gpu = config.gpu == "always" or (config.gpu == "auto" and gpus >= fewest)
    if config.gpu == "always" and gpus < fewest:
        raise Shortage(
            f"train.workers={config.workers} with train.gpu=always needs {fewest} GPUs; "
            f"the cluster has {gpus}"
        )
    largest = max(int(node.get("CPU", 0)) for node in _nodes())
    cpus = config.cpus_per_worker or _default_cpus(most, largest, use_gpu)
    if cpus > largest:
        raise Shortage(
            f"train.cpus_per_worker={cpus}: no node has {cpus} CPUs, the largest has {largest}; "
            "lower it"
        )
    fit_in = _capacity(cpus, use_gpu)
    if fit_in < fewest or cpus * fewest >= total.get("CPU", 0):
        raise Shortage(
            f"train.workers={config.workers} with {cpus} CPUs each does not fit the cluster's "
            f"{int(total.get('CPU', 0))} CPUs, of which one reads the data; lower train.workers "
            "or train.cpus_per_worker"
        )
    return Placement(most, cpus, use_gpu, fewest if fewest < most else None)


def wanted(config: TrainConfig) -> list[dict[str, float]]:
    """Return what the fewest workers that will do ask of nodes, one entry a worker."""
    fewest, _ = config.worker_range
    gpu = {"GPU": 1.0} if config.gpu == "always" else {}
    return [{"CPU": float(config.cpus_per_worker or 1), **gpu}] * fewest


def runs_at_once(placement: Placement) -> int:
    """Return how many runs of this placement the connected cluster holds beside each other."""
    by_place = _capacity(placement.cpus, placement.gpu) // placement.workers
    # Reading and decoding need CPUs too.
    by_core = usable_cores() // (placement.cpus * placement.workers)
    return max(1, min(by_place, by_core))


def spread(config: TrainConfig, runs: int) -> tuple[int, int]:
    """Return how many of some runs go beside each other, and the cores of each worker.

    On GPUs a worker takes fewer cores than it would alone, where more runs find a GPU so.

    Raises:
        UserError: not even one fits.

    """
    placement = place(config)

    def fitting(cpus: int) -> int:
        return min(runs, runs_at_once(replace(placement, cpus=cpus)))

    cpus = placement.cpus
    if placement.gpu and config.cpus_per_worker is None:
        cpus = max(range(cpus, 0, -1), key=fitting)
    return fitting(cpus), cpus


def _default_cpus(workers: int, largest: int, use_gpu: bool) -> int:
    """Share the cores out, fewer a worker until as many find a node as there is room for."""
    workers = max(1, min(workers, _capacity(1, use_gpu)))
    cpus = max(1, min(MAX_DEFAULT_CPUS, largest, usable_cores() // workers))
    while cpus > 1 and _capacity(cpus, use_gpu) < workers:
        cpus -= 1
    return cpus


def _capacity(cpus: int, use_gpu: bool) -> int:
    """Return how many workers the nodes hold."""
    places = 0
    for node in _nodes():
        by_cpu = int(node.get("CPU", 0)) // cpus
        places += min(by_cpu, int(node.get("GPU", 0))) if use_gpu else by_cpu
    return places


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
