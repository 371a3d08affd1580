"""What ends trials early, or lets them learn from each other."""

import math
import random
from typing import Any, Final

from ray.tune import Stopper
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from btray.errors import UserError
from btray.tune.dimension import Dimension
from btray.tune.settings import SweepConfig, TuneConfig
from btray.tune.space import Space
from btray.tune.trial import BEST, EPOCHS, POINT

PERTURBED: Final = (
    "train.learning_rate",
    "train.weight_decay",
    "train.label_smoothing",
    "train.focal_gamma",
    "train.mixup",
    "train.cutmix",
    "train.gradient_clip",
    "model.dropout",
    "model.drop_path",
)
"""What PBT may change within a trial, besides `augment`: what fits any checkpoint."""


def pauses(tune: TuneConfig) -> bool:
    """Say whether a scheduler pauses trials until others have come as far.

    Those must not count as being at work: it waits for whole groups of them.
    """
    return tune.scheduler in ("hyperband", "pbt")


class Budget(Stopper):
    """Ends a sweep when its trials have had their GPU hours."""

    def __init__(self, gpu_hours: float, gpus: float) -> None:
        """Take the hours, and the GPUs of each trial."""
        self.gpus, self.left = gpus, gpu_hours

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - Ray's
        """Count an epoch; no single trial is ended."""
        self.left -= result["time_this_iter_s"] * self.gpus / 3600
        return False

    def stop_all(self) -> bool:
        """Say whether there are none left."""
        return self.left <= 0


def create_scheduler(config: SweepConfig, space: Space) -> TrialScheduler:
    """Return Ray Tune's scheduler of these settings.

    Raises:
        UserError: a space PBT cannot perturb.

    """
    tune, epochs = config.tune, longest(config, space)
    # With several objectives the search has no single metric: the scheduler goes by the score.
    own: dict[str, Any] = {}
    if tune.objectives and tune.search == "tpe":
        own = {"metric": BEST, "mode": "max"}
    match tune.scheduler:
        case "asha":
            return AsyncHyperBandScheduler(
                time_attr=EPOCHS,
                max_t=epochs,
                grace_period=min(tune.grace_epochs, epochs),
                reduction_factor=tune.reduction,
                **own,
            )
        case "hyperband":
            return HyperBandScheduler(
                time_attr=EPOCHS, max_t=epochs, reduction_factor=tune.reduction, **own
            )
        case "median":
            return MedianStoppingRule(time_attr=EPOCHS, grace_period=tune.grace_epochs, **own)
        case "pbt":
            return PopulationBasedTraining(
                time_attr=EPOCHS,
                perturbation_interval=tune.perturb_epochs,
                perturbation_factors=(0.5, 2.0),  # a sweep is short: small steps lead nowhere
                hyperparam_mutations={POINT: _mutations(space)},
                custom_explore_fn=_Inside(space),
            )
        case _:
            return FIFOScheduler()


def longest(config: SweepConfig, space: Space) -> int:
    """Return the most epochs a trial may have."""
    for dimension in space.dimensions:
        if dimension.path == "train.epochs":
            return int(max(dimension.choices) if dimension.choices else dimension.high or 1)
    return config.train.epochs


def _mutations(space: Space) -> dict[str, Any]:
    for dimension in space.dimensions:
        path = dimension.path
        if path not in PERTURBED and not path.startswith("augment."):
            raise UserError(
                f"tune.scheduler=pbt changes settings within a trial, and {path} cannot be; "
                f"it takes {', '.join(PERTURBED)} and augment.…"
            )
        if dimension.when:
            raise UserError(f"tune.scheduler=pbt: {path} has a condition; leave it out")
        if path == "train.weight_decay" and 0 in (dimension.low, *dimension.choices):
            raise UserError(
                "tune.scheduler=pbt: train.weight_decay 0 has other groups of parameters than "
                "others; begin above it"
            )
    return {
        dimension.path: list(dimension.values() or ()) or _Draw(dimension)
        for dimension in space.dimensions
    }


class _Draw:
    """Draws a new value of a dimension with Python's own generator, which PBT uses too."""

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension

    def __call__(self) -> Any:  # noqa: ANN401 - a field's value
        low, high = self.dimension.low or 0, self.dimension.high or 0
        if self.dimension.kind.startswith("log"):
            return math.exp(random.uniform(math.log(low), math.log(high)))
        return random.uniform(low, high)


class _Inside:
    """Keeps what PBT made by multiplying inside the space."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        point = dict(config[POINT])
        for dimension in self.space.dimensions:
            if dimension.low is not None and dimension.high is not None:
                value = min(max(point[dimension.path], dimension.low), dimension.high)
                point[dimension.path] = value
        return {**config, POINT: point}
