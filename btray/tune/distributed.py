"""A trial of several workers: `fit` itself, whose news it passes on to Ray Tune."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any, Final

from ray import tune

from btray.config import Config, RunConfig
from btray.core import files
from btray.core.layout import CARD, FOLDER
from btray.train.board import Update
from btray.train.learner import score_of
from btray.train.storage import CONFIG, RunFolder
from btray.train.trainer import DivergedError, fit, resume
from btray.tune.space import merged
from btray.tune.trial import BEST, EPOCHS, HISTORY, KEPT, NEVER, POINT, WORST, kept_score

RUN: Final = "run"
"""Folder of the run inside its trial's."""
_BEST: Final = "best.json"
"""File of a trial with its best score so far."""


def train_distributed(
    config: dict[str, Any], base: Config, folder: str, environment: Mapping[str, str]
) -> None:
    """Train a point with `base.train.workers` workers; go on where an earlier attempt was."""
    os.environ.update(environment)
    where = f"{folder}/trial-{tune.get_context().get_trial_id()}"
    settings = merged(base, config[POINT])
    settings = settings.model_copy(update={"run": RunConfig(storage=where, name=RUN)})
    run, reports = RunFolder.locate(files.join(where, RUN)), _Reports(settings, where)
    try:
        if run.exists(f"{FOLDER}/{CARD}"):  # finished, but Ray Tune did not hear of it
            history = json.loads(run.read("history.json"))
        else:
            done = resume(run.uri, reports) if run.exists(CONFIG) else fit(settings, reports)
            history = done.history
    except DivergedError as error:
        lost = {BEST: WORST.get(settings.train.metric, 0.0), KEPT: NEVER}
        tune.report({**lost, EPOCHS: reports.epochs, "diverged": str(error)})
        return
    best = max(score_of(row, settings.train.metric) for row in history)
    over = {BEST: best, KEPT: NEVER, EPOCHS: len(history), HISTORY: history, "finished": True}
    tune.report(over)


class _Reports:
    """Tells Ray Tune of every epoch."""

    def __init__(self, config: Config, where: str) -> None:
        self.metric, self.folder = config.train.metric, RunFolder.locate(where)
        before = json.loads(self.folder.read(_BEST) or "null")
        self.best: float = WORST.get(self.metric, 0.0) if before is None else before
        self.epochs, self.first_step = 1, 0.0

    def show(self, update: Update) -> None:
        """Take one piece of news."""
        if update["kind"] == "step":
            self.first_step = self.first_step or time.time()
        if update["kind"] != "epoch":
            return
        metrics = update["metrics"]
        self.epochs = int(metrics["epoch"]) + 1
        score = score_of(metrics, self.metric)
        self.best = max(self.best, score)
        self.folder.write(_BEST, json.dumps(self.best).encode())
        more = {BEST: self.best, KEPT: kept_score(score, metrics["val_loss"])}
        tune.report({**metrics, **more, EPOCHS: self.epochs, "first_step_at": self.first_step})
