"""What ends trials early, or lets them learn from each other."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ray.tune import Stopper
from ray.tune.experiment import Trial
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
from btray.tune.trial import BEST, EPOCHS, KEPT, POINT

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


TELLING: Final = 50
"""Batches after which scores begin to say how a trial will end. Seen with btray_cnn: after 30 the
later best were often not yet among the better ones, after 70 they were (docs/benchmarks.md)."""


def doubt(config: SweepConfig, rows: int) -> str:
    """Return what speaks against ending trials as early as asked, or ''; `rows` are of train."""
    batches = max(1, rows // config.data.batch_size)
    grace, epochs = config.tune.grace_epochs, config.train.epochs
    longer = math.ceil(TELLING / batches)
    if config.tune.scheduler not in ("asha", "median") or longer <= grace or grace >= epochs:
        return ""
    advice = f"tune.grace_epochs={longer}, or " if longer < epochs else ""
    return (
        f"a trial may end after {batches * grace} batches, when its scores say little yet: better "
        f"{advice}a smaller data.batch_size"
    )


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


class InStep(PopulationBasedTraining):
    """PBT whose members wait for each other, so that the same seed copies the same members.

    Ray's own synchronous one waits forever for a member that failed or that a restart left at
    another epoch, copies onto a member whose own checkpoint is still being written, and goes by
    the best a member, or the one it copied, ever was; this one by what it is now.
    """

    def __init__(self, seed: int, **settings: Any) -> None:  # noqa: ANN401 - Ray's
        """Take the seed of all draws, and what Ray's own takes."""
        super().__init__(synch=True, **settings)
        self.seed = seed
        self._copies: list[Trial] = []

    def set_search_properties(
        self,
        metric: str | None,  # noqa: ARG002 - Ray's
        mode: str | None,
        **spec: Any,  # noqa: ANN401 - Ray's
    ) -> bool:
        """Take an epoch's own score."""
        return super().set_search_properties(KEPT, mode, **spec)

    def on_trial_result(
        self,
        tune_controller: Any,  # noqa: ANN401, ARG002 - Ray's
        trial: Trial,
        result: dict[str, Any],
    ) -> str:
        """Pause a member that has come far enough."""
        state, epochs = self._trial_state[trial], result[EPOCHS]
        if epochs - state.last_perturbation_time < self._perturbation_interval:
            return TrialScheduler.CONTINUE
        self._save_trial_state(state, epochs, result, trial)
        return TrialScheduler.PAUSE

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:  # noqa: ANN401 - Ray's
        """Choose a copy, or else the member furthest behind; let them copy when all wait."""
        chosen = self._next(tune_controller)
        live = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]
        waiting = (t.status == Trial.PAUSED and not t.temporary_state.saving_to for t in live)
        if chosen is None and live and all(waiting):
            self._exchange(tune_controller, live)
            chosen = self._next(tune_controller)
        return chosen

    def _next(self, tune_controller: Any) -> Trial | None:  # noqa: ANN401 - Ray's
        behind = [
            trial
            for trial in tune_controller.get_trials()
            if trial.status in (Trial.PENDING, Trial.PAUSED)
            and self._trial_state[trial].last_train_time < self._next_perturbation_sync
        ]
        # Copies first: the member copied from removes old checkpoints as it goes on.
        first = [trial for trial in behind if trial in self._copies] or behind
        return min(first, key=lambda t: self._trial_state[t].last_train_time, default=None)

    def _exchange(self, tune_controller: Any, live: list[Trial]) -> None:  # noqa: ANN401 - Ray's
        lower, upper = self._quantiles()
        for trial in (*upper, *lower):
            with self._draws(trial, "whom"):
                self._checkpoint_or_exploit(trial, tune_controller, upper, lower)
        for state in (self._trial_state[trial] for trial in live):
            state.last_perturbation_time = state.last_train_time
        reached = max(self._trial_state[trial].last_train_time for trial in live)
        self._next_perturbation_sync = reached + self._perturbation_interval
        self._copies = lower

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[Any, Any]:
        with self._draws(trial, "what"):
            new: tuple[Any, Any] = super()._get_new_config(trial, trial_to_clone)
            return new

    @contextmanager
    def _draws(self, trial: Trial, what: str) -> Iterator[None]:
        """Draw by the member and its epoch from Python's generator, which all in a process use."""
        before = random.getstate()
        member, state = list(self._trial_state).index(trial), self._trial_state[trial]
        random.seed(f"{self.seed} {member} {state.last_train_time} {what}")
        try:
            yield
        finally:
            random.setstate(before)


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
            return InStep(
                config.seed,
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
