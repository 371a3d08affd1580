"""How a run is laid over a cluster: workers, cores, GPUs; and whether they are there."""

from dataclasses import dataclass

import ray
from ray.train import ScalingConfig

from btray.cluster import usable_cores
from btray.config import TrainConfig
from btray.errors import UserError

MAX_DEFAULT_CPUS = 8
"""Cores a worker gets at most unless told otherwise: past that a step gains little."""


@dataclass(frozen=True)
class Placement:
    """Resources of every training worker."""

    workers: int
    cpus: int
    gpu: bool

    def scaling(self) -> ScalingConfig:
        """Return the same for Ray Train."""
        return ScalingConfig(
            num_workers=self.workers,
            use_gpu=self.gpu,
            resources_per_worker={"CPU": self.cpus, **({"GPU": 1} if self.gpu else {})},
        )


def place(config: TrainConfig) -> Placement:
    """Fit the workers to the connected cluster.

    Raises:
        UserError: more cores or GPUs asked for than the cluster has.

    """
    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0))
    use_gpu = config.gpu == "always" or (config.gpu == "auto" and gpus >= config.workers)
    if config.gpu == "always" and gpus < config.workers:
        raise UserError(
            f"train.workers={config.workers} with train.gpu=always needs {config.workers} GPUs; "
            f"the cluster has {gpus}"
        )
    largest = max(int(node.get("CPU", 0)) for node in _nodes())
    cpus = config.cpus_per_worker or _default_cpus(config.workers, largest, use_gpu)
    if cpus > largest:
        raise UserError(
            f"train.cpus_per_worker={cpus}: no node has {cpus} CPUs, the largest has {largest}; "
            "lower it"
        )
    fit_in = _capacity(cpus, use_gpu)
    if fit_in < config.workers or cpus * config.workers >= total.get("CPU", 0):
        raise UserError(
            f"train.workers={config.workers} with {cpus} CPUs each does not fit the cluster's "
            f"{int(total.get('CPU', 0))} CPUs, of which one reads the data; lower train.workers "
            "or train.cpus_per_worker"
        )
    return Placement(config.workers, cpus, use_gpu)


def _default_cpus(workers: int, largest: int, use_gpu: bool) -> int:
    """Share the cores out, fewer a worker until all workers find a node."""
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
