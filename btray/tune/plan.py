"""What a sweep is made of, known and checked before anything of it starts."""

from dataclasses import dataclass
from typing import Any

import torch

from btray import cluster
from btray.config import Config, ImageConfig
from btray.core.optim import create_optimizer
from btray.core.weights import Weights, initial_weights
from btray.core.zoo import create_model
from btray.data.cache import cache_limit
from btray.data.dataset import Dataset
from btray.data.decoding import Blocks, decode_rows
from btray.errors import UserError
from btray.train.inputs import open_training_data
from btray.train.trainer import check_training, refuse_seen
from btray.tune.refit import refuse_refit
from btray.tune.room import Room, make_room
from btray.tune.searchers import draw
from btray.tune.settings import SweepConfig
from btray.tune.space import Space, merged
from btray.tune.trial import Start, start_of

_SPLITS = ("train", "validation")
_TRIED = 64
"""Points whose networks are built beforehand where no list of all is known."""


@dataclass(frozen=True)
class Plan:
    """All that is known before a sweep starts."""

    config: SweepConfig
    base: Config
    dataset: Dataset
    space: Space
    points: list[dict[str, Any]]
    """Known ones, or all where no model makes them."""
    room: Room

    @property
    def trials(self) -> int:
        """How many there are to be."""
        return self.config.tune.trials if self.modelled else len(self.points)

    @property
    def modelled(self) -> bool:
        """Say whether points come from a model of what earlier ones reached."""
        return self.config.tune.search == "tpe"


@dataclass(frozen=True)
class Shared:
    """What all trials start from."""

    blocks: dict[ImageConfig, Blocks]
    """The decoded data set, once for every way its images are prepared."""
    weights: dict[Start, Weights]
    """Initial weights, by architecture, origin and size of image."""


def make_plan(config: SweepConfig) -> Plan:
    """Check all that can be checked before anything is made; connect to the cluster.

    Raises:
        UserError: nothing to train on, a space that cannot be, networks that cannot be built,
            or resources the cluster lacks.

    """
    base, tune = config.base(), config.tune
    if base.train.teacher is not None:
        raise UserError("train.teacher: a sweep does not distil; leave it out, distil the best")
    dataset = open_training_data(base)
    space = Space.parse(tune.space, base)
    points = [space.check_point(point) for point in tune.points]
    if len(points) > tune.trials:
        raise UserError(f"tune.points: {len(points)} are more than tune.trials={tune.trials}")
    if tune.search == "grid":
        points = space.grid()
    elif tune.search == "random":
        points += draw(space, tune.trials - len(points), config.seed)
    if tune.scheduler == "pbt" and (tune.trials < 2 or tune.refit):
        raise UserError(
            "tune.scheduler=pbt: takes at least two trials, and changes settings within them, "
            "which no refit can repeat; raise tune.trials, leave tune.refit out"
        )
    cluster.connect()
    cluster.require_node(base.data.node_labels)
    most = tune.trials if tune.search == "tpe" else len(points)
    room = make_room(base, tune, most)
    tried = points if tune.search != "tpe" else [*points, *draw(space, _TRIED, config.seed)]
    _try(config, dataset, [merged(base, point) for point in tried], room)
    return Plan(config, base, dataset, space, points, room)


def _try(config: SweepConfig, dataset: Dataset, runs: list[Config], room: Room) -> None:
    """Build every network once, without its weights."""
    seen, origins = set(), set()
    for run in runs:
        check_training(run, dataset, room.gpu)
        if config.tune.refit:
            refuse_refit(run)
        if run.model.pretrained not in origins:
            origins.add(run.model.pretrained)
            refuse_seen("model.pretrained", run.model.pretrained, dataset)
        key = run.model, run.image.size, run.train.optimizer
        if key not in seen:
            seen.add(key)
            with torch.device("meta"):
                names = dataset.manifest.class_names
                create_optimizer(create_model(run.model, len(names), run.image.size), run.train)


def share(plan: Plan) -> Shared:
    """Decode and load what trials of one worker share; the others do so themselves.

    Raises:
        UserError: the decoded images do not fit the object store; weights that cannot be had.

    """
    if plan.room.workers > 1 and not plan.config.tune.refit:
        return Shared({}, {})
    return Shared(_decode(plan), _initial(plan))


def _kinds(plan: Plan, *prefixes: str) -> list[Config]:
    """Return a run for every combination of what some fields can be, conditions honoured."""
    by_path = {dimension.path: dimension for dimension in plan.space.dimensions}
    wanted = {path for path in by_path if path.startswith(prefixes)}
    while more := {other for path in wanted for other in by_path[path].when} - wanted:
        wanted |= more
    part = Space(tuple(d for d in plan.space.dimensions if d.path in wanted))
    return [merged(plan.base, point) for point in part.grid()]


def _decode(plan: Plan) -> dict[ImageConfig, Blocks]:
    images, dataset = {run.image for run in _kinds(plan, "image.")}, plan.dataset
    rows = sum(dataset.count(split) for split in _SPLITS)
    needed, limit = sum(rows * image.size**2 for image in images), cache_limit(plan.base)
    if needed > limit:
        raise UserError(
            f"the decoded images take {needed / 2**30:.1f} GiB, and a sweep keeps them in the "
            f"object store, of which it may take {limit / 2**30:.1f} GiB; lower image.size, or "
            "raise data.cache_limit"
        )
    labels = plan.base.data.node_labels
    return {image: decode_rows(dataset, _SPLITS, image, labels) for image in images}


def _initial(plan: Plan) -> dict[Start, Weights]:
    found = dict[Start, Weights]()
    for run in _kinds(plan, "image.size", "model.name", "model.pretrained"):
        if run.model.pretrained is not None and start_of(run) not in found:
            names = plan.dataset.manifest.class_names
            weights = initial_weights(run.model, names, run.image.size, run.seed)
            if weights is not None:
                found[start_of(run)] = weights
    return found
