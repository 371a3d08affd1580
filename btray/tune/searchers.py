"""Where a sweep's points come from."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from btray.core import files
from btray.errors import UserError
from btray.tune.outcome import Outcome
from btray.tune.settings import SweepConfig, TuneConfig
from btray.tune.space import Space

if TYPE_CHECKING:
    import optuna


def sampler(settings: TuneConfig, seed: int) -> "optuna.samplers.TPESampler":
    """Return the tree-structured Parzen estimator, of several dimensions together."""
    import optuna

    return optuna.samplers.TPESampler(
        n_startup_trials=settings.startup_trials,
        multivariate=True,
        group=True,  # dimensions that do not always count are modelled apart
        constant_liar=bool(not settings.objectives),  # trials beside each other keep a distance
        seed=seed,
    )


def draw(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Return random points, the same for the same seed."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        return [space.suggest(study.ask()) for _ in range(count)]
    finally:
        optuna.logging.set_verbosity(verbosity)


def known_trials(
    config: SweepConfig, space: Space, data_hash: str
) -> "Iterator[optuna.trial.FrozenTrial]":
    """Yield what earlier sweeps found, as trials that are over.

    Raises:
        UserError: no finished sweep there, or one of another data set, metric or space.

    """
    from optuna.trial import create_trial

    for uri in config.tune.warm_start:
        outcome = read_outcome(uri)
        if outcome.metric != config.train.metric:
            raise UserError(
                f"tune.warm_start: {uri} sought {outcome.metric}, this sweep {config.train.metric}"
            )
        if outcome.data_hash != data_hash:
            raise UserError(f"tune.warm_start: {uri} searched on another data set; leave it out")
        distributions, learned = space.distributions(), 0
        for trial in outcome.trials:
            score = outcome.score(trial)
            values = [
                trial.latency_ms if o == "latency_ms" else trial.parameters
                for o in config.tune.objectives
            ]
            if score is None or trial.state == "failed" or None in values:
                continue
            params, learned = space.encode(trial.point), learned + 1
            sign = -1 if outcome.metric == "loss" else 1
            yield create_trial(
                params=params,
                distributions={path: distributions[path] for path in params},
                values=[sign * score, *(float(v) for v in values if v is not None)],
            )
        if not learned:
            wanted = ", ".join(["a score", *config.tune.objectives])
            raise UserError(f"tune.warm_start: {uri} has no trial with {wanted}; leave it out")


def read_outcome(uri: str) -> Outcome:
    """Read a finished sweep's outcome; raises UserError when there is none."""
    where = files.join(uri, "sweep.json")
    try:
        return Outcome.from_json(json.loads(files.read(where)))
    except FileNotFoundError:
        raise UserError(f"{uri}: no finished sweep (no sweep.json)") from None
    except ValueError:
        raise UserError(f"{where}: damaged") from None
