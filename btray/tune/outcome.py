"""What came of a hyperparameter sweep: its trials, and what can be learned from them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from btray.errors import UserError
from btray.tune.space import Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

METRICS: Final = ("macro_f1", "accuracy", "macro_auroc", "loss")
"""Validation scores a sweep can go by."""
LOWER_IS_BETTER: Final = ("loss", "latency_ms", "parameters")
STATES: Final = ("running", "paused", "finished", "stopped", "failed")
LEAST_TRIALS: Final = 8
"""Fewer trials tell nothing of what matters."""


def _present(row: object) -> object:
    """Leave out what is null."""
    return {k: v for k, v in row.items() if v is not None} if isinstance(row, dict) else row


Row = Annotated[dict[str, float], BeforeValidator(_present)]


@dataclass
class Trial:
    """One configuration and how far its training came."""

    id: str
    point: dict[str, Any]
    """What the search chose, by path (`train.learning_rate`); others do not count here."""
    state: str
    """`running`, `paused`, `finished` (all its epochs, or its own patience), `stopped` (by the
    scheduler) or `failed`."""
    history: list[Row]
    """A row an epoch: `epoch` from 0, `train_loss`, `val_loss`, `val_macro_f1` …"""
    epochs: int
    """Most epochs it was to have."""
    seconds: float
    """It trained for, interruptions left out."""
    parameters: int | None = None
    """Of the network."""
    latency_ms: float | None = None
    """Measured for one image."""
    error: str | None = None
    """The last one, in a line."""
    failures: int = 0
    """Times it was lost."""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state {self.state!r}: must be one of {', '.join(STATES)}")


@dataclass(frozen=True)
class Failure:
    """One error and the trials that met it."""

    error: str
    trials: list[str]


@dataclass(frozen=True)
class Importance:
    """Shares of the scores' variance that single hyperparameters explain."""

    shares: dict[str, float] | None
    """By path, the largest first; they sum to 1. None when they cannot be told."""
    reason: str | None
    """Why they cannot be told."""
    left_out: list[str]
    """Paths that were not in every trial."""
    trials: int
    """With a score, from which they were told."""


@dataclass
class Outcome:
    """All trials of a sweep, in the order they began."""

    name: str
    metric: str
    """Validation score that was sought: of `METRICS`."""
    objectives: list[str]
    """What was traded against each other: `macro_f1`, `latency_ms`; empty for the metric alone."""
    search: str
    scheduler: str
    seed: int
    data_hash: str
    trials: list[Trial]
    seconds: float | None = None
    """From start to end by the clock; None when it is not known."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r}: must be one of {', '.join(METRICS)}")
        known = (*METRICS, "latency_ms", "parameters")
        for name in self.objectives:
            if name not in known:
                raise ValueError(f"objective {name!r}: must be one of {', '.join(known)}")
        ids = [trial.id for trial in self.trials]
        if len(set(ids)) < len(ids):
            raise ValueError("two trials have the same id")

    def score(self, trial: Trial) -> float | None:
        """Return the best of the metric over a trial's epochs; None without any."""
        row = self._best_row(trial)
        return None if row is None else row[f"val_{self.metric}"]

    def best_epoch(self, trial: Trial) -> int | None:
        """Return the epoch of a trial's score, from 0; of equals that of lower loss."""
        row = self._best_row(trial)
        return None if row is None else int(row["epoch"])

    def better(self, score: float, other: float) -> bool:
        """Whether a score of the metric is truly better than another."""
        return score < other if self.metric in LOWER_IS_BETTER else score > other

    @property
    def best(self) -> Trial | None:
        """The trial with the best score, the first of equals; one that failed cannot be it."""
        sound = (trial for trial in self.ranked() if trial.state != "failed")
        return next((trial for trial in sound if self.score(trial) is not None), None)

    def ranked(self) -> list[Trial]:
        """Return all trials, the best score first and those without a score last."""
        sign = 1 if self.metric in LOWER_IS_BETTER else -1

        def rank(trial: Trial) -> tuple[bool, float]:
            score = self.score(trial)
            return score is None, 0.0 if score is None else sign * score

        return sorted(self.trials, key=rank)

    def value(self, trial: Trial, objective: str) -> float | None:
        """Return a trial's value of an objective; of a score, at the epoch of the trial's best."""
        if objective in METRICS:
            row = self._best_row(trial)
            return None if row is None else _number(row, f"val_{objective}")
        cost = trial.latency_ms if objective == "latency_ms" else trial.parameters
        return None if cost is None else float(cost)

    def pareto(self) -> list[Trial]:
        """Return the trials that no other one dominates; not those that failed or lack a value.

        One dominates another that is as good in every objective and better in one.
        """
        costs: list[tuple[Trial, list[float]]] = []
        for trial in self.trials if self.objectives else []:
            values = [self.value(trial, name) for name in self.objectives]
            known = [value for value in values if value is not None]
            if trial.state != "failed" and len(known) == len(values):
                signs = [1 if name in LOWER_IS_BETTER else -1 for name in self.objectives]
                costs.append((trial, [s * v for s, v in zip(signs, known, strict=True)]))
        return [t for t, cost in costs if not any(_dominates(other, cost) for _, other in costs)]

    def best_so_far(self) -> list[tuple[int, float]]:
        """Return epochs spent and the best score by then, as if trial had come after trial."""
        spent, best = 0, None
        curve: list[tuple[int, float]] = []
        for trial in self.trials:
            for row in trial.history:
                spent += 1
                score = None if trial.state == "failed" else _number(row, f"val_{self.metric}")
                if score is not None and (best is None or self.better(score, best)):
                    best = score
                if best is not None:
                    curve.append((spent, best))
        return curve

    def count(self, state: str) -> int:
        """Return the number of trials in a state."""
        return sum(trial.state == state for trial in self.trials)

    def epochs_spent(self) -> int:
        """Return the epochs that all trials came to, those that failed included."""
        return sum(len(trial.history) for trial in self.trials)

    def epochs_planned(self) -> int:
        """Return the epochs all trials would have had without any stop."""
        return sum(trial.epochs for trial in self.trials)

    def saved(self) -> float | None:
        """Return the share of the planned epochs that trials which came to an end did without.

        Failed trials saved nothing, and running and paused ones may still take theirs; None
        when no other trial is there.
        """
        ended = [trial for trial in self.trials if trial.state in ("finished", "stopped")]
        planned = sum(trial.epochs for trial in ended)
        return 1 - sum(len(trial.history) for trial in ended) / planned if planned else None

    def errors(self) -> list[Failure]:
        """Return the distinct errors, what befell most trials first."""
        found: dict[str, list[str]] = {}
        for trial in self.trials:
            if trial.error is not None or trial.state == "failed":
                error = " ".join((trial.error or "").split()) or "no error was recorded"
                found.setdefault(error, []).append(trial.id)
        failures = [Failure(error, trials) for error, trials in found.items()]
        return sorted(failures, key=lambda failure: -len(failure.trials))

    def importance(self, space: Space) -> Importance:
        """Tell which hyperparameters matter: fANOVA (Hutter et al. 2014), by Optuna.

        Every trial with a score counts with its best, whatever number of epochs it had. A
        logarithmic dimension is taken by its logarithm, as it was searched.
        """
        distributions = space.distributions()
        scored = [(self.score(trial), trial.point) for trial in self.trials]
        scores = [score for score, _ in scored if score is not None]
        points = [point for score, point in scored if score is not None]
        everywhere = [path for path in distributions if all(path in point for point in points)]
        left_out = [path for path in distributions if path not in everywhere]
        varied = [p for p in everywhere if len({repr(point[p]) for point in points}) > 1]
        shares, reason = None, None
        if len(scores) < LEAST_TRIALS:
            reason = f"{len(scores)} trials have a score; it takes at least {LEAST_TRIALS}"
        elif len(set(scores)) == 1:
            reason = "all trials have the same score"
        elif len(varied) < 2:
            reason = f"{len(varied)} hyperparameters vary and are in every trial; it takes two"
        else:
            try:
                rows = list(map(space.encode, points))
            except UserError as error:
                reason = str(error)
            else:
                columns = {path: [row[path] for row in rows] for path in everywhere}
                even = {path: _evenly(distributions[path], columns[path]) for path in everywhere}
                shares = _fanova(even, scores)
        return Importance(shares, reason, left_out, len(scores))

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads; a number of a history that is not finite is null."""
        found = asdict(self)
        for trial in found["trials"]:
            trial["history"] = [
                {key: value if math.isfinite(value) else None for key, value in row.items()}
                for row in trial["history"]
            ]
        plain: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))  # no tuples
        return plain

    @classmethod
    def from_json(cls, found: object) -> Self:
        """Read what `to_json` returned; what is null in a history is left out of its row.

        Raises:
            UserError: it is something else.

        """
        try:
            return TypeAdapter(cls).validate_python(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            place = f" {where}:" if where else ""
            raise UserError(f"not the outcome of a sweep:{place} {first['msg']}") from None

    def _best_row(self, trial: Trial) -> dict[str, float] | None:
        key, sign = f"val_{self.metric}", 1 if self.metric in LOWER_IS_BETTER else -1
        scored = [row for row in trial.history if _number(row, key) is not None]
        infinite = {"val_loss": math.inf}
        return min(
            scored,
            key=lambda row: (sign * row[key], (infinite | row)["val_loss"], row["epoch"]),
            default=None,
        )


def _number(row: dict[str, float], key: str) -> float | None:
    """Return a row's number if it is there and finite."""
    value = row.get(key)
    return value if value is not None and math.isfinite(value) else None


def _dominates(cost: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(cost, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _fanova(
    columns: "Mapping[str, tuple[BaseDistribution, Sequence[Any]]]", scores: Sequence[float]
) -> dict[str, float]:
    """Return the importance of columns of values, each with its distribution."""
    # scikit-learn takes a second to load: not before it is needed.
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(
        optuna.trial.create_trial(
            params={path: values[row] for path, (_, values) in columns.items()},
            distributions={path: distribution for path, (distribution, _) in columns.items()},
            value=score,
        )
        for row, score in enumerate(scores)
    )
    evaluator = FanovaImportanceEvaluator(seed=0)
    shares = get_param_importances(study, evaluator=evaluator, params=list(columns))
    return {path: float(share) for path, share in shares.items()}


def _evenly(
    distribution: "BaseDistribution", values: Sequence[Any]
) -> "tuple[BaseDistribution, Sequence[Any]]":
    """Return a dimension in units in which it was searched evenly, and its values in them.

    Optuna's fANOVA weighs by the plain value, by which nearly all of a learning rate's range
    is its last decade.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return distribution, values
    scale = math.log if distribution.log else float
    return (
        FloatDistribution(scale(distribution.low), scale(distribution.high)),
        [scale(value) for value in values],
    )
