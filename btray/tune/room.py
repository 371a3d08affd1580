"""How many trials go beside each other, on what, and why."""

from dataclasses import dataclass

import ray

from btray import cluster
from btray.config import Config
from btray.errors import UserError
from btray.train.plan import MAX_DEFAULT_CPUS, Shortage, place, spread
from btray.tune.schedulers import pauses
from btray.tune.settings import TuneConfig

DRIVER_CPU = 0.01
"""Of a trial whose workers Ray Train places: Ray Tune takes no trial of nothing."""


@dataclass(frozen=True)
class Room:
    """What a sweep takes of the cluster."""

    at_once: int
    """Trials beside each other."""
    cpus: int
    """Cores of a trial, or of each of its workers."""
    gpus: float
    """GPUs of a trial of one worker, or of each worker."""
    workers: int
    """Of each trial."""
    why: str
    """The same for a person, in a line."""
    reserved: int
    """Cores Ray Tune reserves for a trial of one worker: more than it uses where these alone
    bound how many are at work."""

    @property
    def gpu(self) -> bool:
        """Whether trials train on GPUs."""
        return self.gpus > 0

    @property
    def gpus_each(self) -> float:
        """GPUs of a whole trial."""
        return self.gpus * self.workers

    @property
    def resources(self) -> dict[str, float]:
        """What Ray Tune reserves for a trial's own process."""
        if self.workers > 1:
            return {"cpu": DRIVER_CPU}
        return {"cpu": float(self.reserved), **({"gpu": self.gpus} if self.gpus else {})}


def make_room(config: Config, tune: TuneConfig, trials: int) -> Room:
    """Share the connected cluster out among trials, with cores left to read and decode.

    Raises:
        UserError: a range of workers, or not even one trial fits.

    """
    fewest, workers = config.train.worker_range
    if fewest != workers:
        raise UserError("train.workers: a trial takes a number of workers, no range")
    if workers > 1 and (pauses(tune) or tune.objectives):
        raise UserError(
            "train.workers: tune.scheduler pbt and hyperband, and tune.objectives, are for trials "
            "of one worker; set train.workers=1, or tune.scheduler=asha"
        )
    most = min(trials, tune.at_once or trials)
    if workers > 1:
        at_once, cpus = spread(config.train, most)
        gpus = 1.0 if place(config.train).gpu else 0.0
        why = _explained(at_once, most, f"{workers} workers of {cpus} cores each")
        room = Room(min(at_once, most), cpus, gpus, workers, why, cpus)
    else:
        room = _single(config, tune, most)
    if tune.gpu_hours is not None and not room.gpu:
        raise UserError("tune.gpu_hours: trials take no GPU here; bound the sweep by tune.hours")
    return room


def _single(config: Config, tune: TuneConfig, most: int) -> Room:
    """Place trials of one worker, which train in their own process."""
    asked, usable = config.train.cpus_per_worker, cluster.usable_cores()
    there = any(node.get("GPU", 0) >= 1 for node in _nodes())
    if config.train.gpu == "always" and not there:
        raise Shortage("train.gpu=always needs a GPU; the cluster has none")
    share = tune.gpus_per_trial if there and config.train.gpu != "never" else 0.0
    # One thread a trial is the most work done: threads of one step wait for each other.
    at_once = min(most, _places(asked or 1, share), max(1, usable // (asked or 1)))
    if at_once < 1:
        raise Shortage(
            f"train.cpus_per_worker={asked}: no node has so many cores for a trial; lower it"
        )
    cpus = asked or max(1, min(MAX_DEFAULT_CPUS, usable // at_once))
    while cpus > 1 and asked is None and _places(cpus, share) < at_once:
        cpus -= 1
    reserved = cpus
    while pauses(tune) and _places(reserved + 1, share) >= 1 and _places(reserved, share) > at_once:
        reserved += 1
    each = f"{share:g} GPU and {cpus} cores each" if share else f"{cpus} cores each"
    return Room(at_once, cpus, share, 1, _explained(at_once, most, each), reserved)


def _places(cpus: int, share: float) -> int:
    """Return how many trials of so many cores, and such a share of a GPU, the nodes hold."""
    places = 0
    for node in _nodes():
        by_cpu = int(node.get("CPU", 0)) // cpus
        by_gpu = int(node.get("GPU", 0)) * int(1 / share) if share else by_cpu
        places += min(by_cpu, by_gpu)
    return places


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _explained(at_once: int, most: int, each: str) -> str:
    usable, gpus = cluster.usable_cores(), ray.cluster_resources().get("GPU", 0)
    bound = "as many as asked for" if at_once == most else "as many as there is room for"
    return (
        f"{at_once} trials at a time, {bound}: {each} of {usable} cores and {gpus:g} GPUs, "
        "beside what reads the data"
    )
