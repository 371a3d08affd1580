"""Keeps account of a sweep while Ray Tune runs it, and tells whoever watches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ray.tune import Callback

from btray.errors import UserError
from btray.train.failures import one_line
from btray.train.learner import score_of
from btray.tune.outcome import Trial
from btray.tune.trial import HISTORY, POINT

_KEPT: Final = ("epoch", "learning_rate", "images_per_second", "train_loss")
"""Besides all that begin with `val_`, what is kept of every epoch."""


class Watcher(Protocol):
    """Shows how a sweep goes."""

    def sweep(self, folder: str, plan: str) -> None:
        """Take note where the sweep is, and of its place on the cluster, in a line."""

    def trial(self, trial: Trial, trials: dict[str, Trial]) -> None:
        """Take note of a trial that changed."""


class Watchers:
    """Several as one."""

    def __init__(self, *watchers: Watcher) -> None:
        self.watchers = watchers

    def sweep(self, folder: str, plan: str) -> None:
        """Pass it on."""
        for watcher in self.watchers:
            watcher.sweep(folder, plan)

    def trial(self, trial: Trial, trials: dict[str, Trial]) -> None:
        """Pass it on."""
        for watcher in self.watchers:
            watcher.trial(trial, trials)


@dataclass
class Account:
    """A sweep of this process: who watches it, and who keeps account of it."""

    watcher: Watcher | None
    recorded: bool
    """Whether there is a record that it goes on from."""
    reporter: "Reporter | None" = None
    """Made by Ray when a sweep is taken up again: it pickles callbacks."""


_accounts: list[Account] = []


@contextmanager
def accounting(watcher: Watcher | None, recorded: bool = False) -> Iterator[Account]:
    """Let somebody watch the sweep that runs meanwhile."""
    _accounts.append(Account(watcher, recorded))
    try:
        yield _accounts[-1]
    finally:
        _accounts.pop()


class Reporter(Callback):
    """Ray Tune's callback; its state is saved with the sweep's and comes back with it."""

    def __init__(self, epochs: int, metric: str) -> None:
        self.epochs, self.metric = epochs, metric
        self.trials: dict[str, Trial] = {}
        self.seconds_before = 0.0
        """Of earlier sessions of the same sweep."""
        self.began = time.monotonic()
        self.restored = False

    def setup(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 - Ray's
        """Make itself known."""
        self.began = time.monotonic()
        if _accounts:
            _accounts[-1].reporter = self

    def get_state(self) -> dict[str, Any]:
        """Return what is saved."""
        seconds = self.seconds_before + time.monotonic() - self.began
        return {"trials": self.trials, "seconds": seconds}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take what was saved."""
        self.trials, self.seconds_before = state["trials"], state["seconds"]
        self.restored = True

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ANN401, ARG002 - Ray's
        """Refuse to begin anew where a record was to be gone on from: Ray does so silently."""
        if _accounts and _accounts[-1].recorded and not self.restored:
            raise UserError(
                "the record of this sweep is torn, and Ray cannot go on from it; start a new one"
            )

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ANN401, ARG002 - Ray's
        """Take note of what Ray ends or pauses without a word: by a budget, or a scheduler."""
        for trial in trials:
            mine = self.trials.get(trial.trial_id)
            if mine is None or mine.state not in ("running", "paused"):
                continue
            if trial.status == "TERMINATED":
                self._end(mine)
            elif mine.state == "running" and trial.status == "PAUSED":
                mine.state = "paused"

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401, ARG002 - Ray's
        """Begin its account, or go on with it."""
        mine = self._of(trial)
        mine.state = "running"
        self._tell(mine)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,  # noqa: ANN401
        result: dict[str, Any],
        **info: Any,  # noqa: ANN401, ARG002
    ) -> None:
        """Take an epoch."""
        mine = self._of(trial)
        mine.seconds = float(result["time_total_s"])
        mine.parameters, mine.latency_ms = result.get("parameters"), result.get("latency_ms")
        if "diverged" in result:
            mine.error = f"diverged: {result['diverged']}"
        for told in (*result.get(HISTORY, ()), result):
            if "epoch" in told:
                self._add(mine, told)
        if "epoch" in result and self._is_best(mine):
            mine.point = dict(result["config"][POINT])  # PBT changes it on the way
        if result.get("finished"):
            mine.state = "finished"
        self._tell(mine)

    def _add(self, mine: Trial, told: dict[str, Any]) -> None:
        row = {k: float(v) for k, v in told.items() if k in _KEPT or k.startswith("val_")}
        # A trial that was taken up again may tell an epoch twice.
        mine.history = [*(old for old in mine.history if old["epoch"] < row["epoch"]), row]

    def _is_best(self, mine: Trial) -> bool:
        scores = [score_of(row, self.metric) for row in mine.history]
        return scores[-1] == max(scores)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401, ARG002
        """Say how it ended."""
        self._end(self._of(trial))

    def _end(self, mine: Trial) -> None:
        if mine.error is not None and mine.error.startswith("diverged"):
            mine.state = "failed"
        elif mine.state != "finished":
            mine.state = "finished" if len(mine.history) >= mine.epochs else "stopped"
        self._tell(mine)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401, ARG002
        """Count a failure after which it goes on."""
        self._failed(trial, "paused")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401, ARG002
        """Keep why it failed for good."""
        self._failed(trial, "failed")

    def _failed(self, trial: Any, state: str) -> None:  # noqa: ANN401
        mine = self._of(trial)
        mine.failures += 1
        mine.state, mine.error = state, one_line(trial.get_pickled_error())
        self._tell(mine)

    def _of(self, trial: Any) -> Trial:  # noqa: ANN401
        if trial.trial_id not in self.trials:
            point = dict(trial.config[POINT])
            epochs = int(point.get("train.epochs", self.epochs))
            self.trials[trial.trial_id] = Trial(trial.trial_id, point, "paused", [], epochs, 0.0)
        return self.trials[trial.trial_id]

    def _tell(self, mine: Trial) -> None:
        watcher = _accounts[-1].watcher if _accounts else None
        if watcher is not None:
            watcher.trial(mine, self.trials)
