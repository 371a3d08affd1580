"""One trial: the learner of `btray train` in the trial's own process, an epoch a step."""

import json
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ray
import torch
from pyarrow.fs import FileSelector, FileSystem
from ray import tune
from safetensors import SafetensorError

from btray.config import Config, ImageConfig
from btray.core.loop import mean_of_views
from btray.core.weights import Weights
from btray.data.decoding import Blocks
from btray.train.learner import Diverged, Learner, Rank
from btray.tune.space import merged

POINT: Final = "point"
"""Key of a trial's settings that holds its point of the space."""
EPOCHS: Final = "epochs_done"
"""Metric that schedulers count by: Ray Tune's own count starts anew when a trial does."""
BEST: Final = "best_score"
"""Metric of the search: the best `train.metric` so far, turned so that higher is better."""
KEPT: Final = "kept_score"
"""Metric by which checkpoints are kept: the epoch's, turned likewise; of equals that of lower
loss counts more."""
HISTORY: Final = "history"
"""Metric, in the first result after a restart: every epoch so far that the trial trained itself."""
WORST: Final = {"loss": -1e3}
"""Score of a trial that diverged, by metric; else 0."""
NEVER: Final = -1e30
"""Score of a checkpoint that must not be taken for the best."""
_TIE: Final = 1e-9
"""What a unit of loss takes from KEPT: less than any two scores differ by."""
_TIMINGS: Final = 20
_SINCE: Final = "since.json"
"""In a trial's checkpoint: the epochs of it that another trial had trained."""
_HALF_WRITTEN: Final = (
    OSError,
    ValueError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)

Start = tuple[str, str | None, int]
"""What tells initial weights apart: architecture, origin, size of image."""


def start_of(config: Config) -> Start:
    """Return which initial weights a run takes."""
    return config.model.name, config.model.pretrained, config.image.size


def kept_score(score: float, loss: float) -> float:
    """Return KEPT of an epoch."""
    return score - _TIE * min(loss, 1e3)


class LearnerTrial(tune.Trainable):
    """A trial of one worker; what it needs stays in the object store, decoded once for all."""

    def setup(
        self,
        config: dict[str, Any],
        base: Config | None = None,
        class_names: tuple[str, ...] = (),
        blocks: Mapping[ImageConfig, Blocks] | None = None,
        weights: Mapping[Start, Weights] | None = None,
        threads: int = 1,
        timed: bool = False,
    ) -> None:
        """Build the learner of a point."""
        if base is None or blocks is None:
            raise ValueError("a trial needs its base configuration and its decoded rows")
        self.base, self.class_names = base, class_names
        self.blocks, self.weights = blocks, weights or {}
        self.threads, self.timed = threads, timed
        self._build(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another point in the same process: nothing is loaded anew."""
        self._build(new_config)
        return True

    def _build(self, config: dict[str, Any]) -> None:
        settings = merged(self.base, config[POINT])
        fresh = settings.model.pretrained is None
        self.learner = Learner(
            settings,
            self.class_names,
            self.threads,
            self.blocks[settings.image],
            None if fresh else self.weights[start_of(settings)],
            None,
            Rank(0, 1, torch.device("cuda" if ray.get_gpu_ids() else "cpu")),
        )
        self.measured: dict[str, float] = {
            "parameters": sum(p.numel() for p in self.learner.network.parameters())
        }
        if self.timed:
            self.measured["latency_ms"] = _latency(self.learner)
        self._point, self._own, self._first_step = config, False, 0.0
        self._since = 0
        """Epochs another trial had trained of what this one goes on from."""

    def step(self) -> dict[str, Any]:
        """Train and validate one epoch."""
        learner = self.learner
        if learner.finished:  # taken up again after its last epoch
            return self._result({KEPT: NEVER}, finished=True)
        try:
            metrics, score = learner.epoch(self._after_step)
        except Diverged as found:
            worst = WORST.get(learner.config.train.metric, 0.0)
            lost = {BEST: worst, KEPT: NEVER, EPOCHS: found.epoch + 1, "diverged": str(found)}
            return {**lost, **self.measured, "done": True}
        kept = {KEPT: kept_score(score, metrics["val_loss"])}
        return self._result({**metrics, **kept}, learner.finished)

    def _after_step(self, _done: int, _loss: torch.Tensor) -> None:
        self._first_step = self._first_step or time.time()

    def _result(self, metrics: Mapping[str, float], finished: bool) -> dict[str, Any]:
        progress = self.learner.progress
        # What was learned after the sweep's last record, Ray Tune has not heard of.
        mine = [row for row in progress.history if row["epoch"] >= self._since]
        history = {HISTORY: mine} if self._own else {}
        self._own = False
        return {
            **metrics,
            **history,
            **self.measured,
            BEST: progress.best_score,
            EPOCHS: progress.next_epoch,
            "first_step_at": self._first_step,
            "finished": finished,
            "done": finished,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write what the trial, a copy of it, or a bundle goes on from."""
        folder = Path(checkpoint_dir)
        (folder / _SINCE).write_text(json.dumps(self._since))  # first: no whole one lacks it
        self.learner.save(folder)
        self.learner.save_answers(folder)

    def restore(self, checkpoint_path: Any) -> None:  # noqa: ANN401 - Ray's
        """Go on from a checkpoint, or from the newest whole one when it is gone.

        Ray removes old checkpoints at once but records only now and then which it has: after a
        crash the record may name one that is no more. PBT restores another trial's.
        """
        checkpoint = getattr(checkpoint_path, "checkpoint", checkpoint_path)
        try:
            super().restore(checkpoint_path)
        except _HALF_WRITTEN:
            if not isinstance(checkpoint, tune.Checkpoint):
                raise
            self._restore_newest(checkpoint)
        self._iteration = self.learner.progress.next_epoch
        place = Path(getattr(checkpoint, "path", "")).parent.name
        self._own = place == f"trial-{self.trial_id}"
        if not self._own:
            self._since = self.learner.progress.next_epoch

    def _restore_newest(self, gone: tune.Checkpoint) -> None:
        self._build(self._point)
        parent = gone.path.rpartition("/")[0]
        filesystem: FileSystem = gone.filesystem
        found = filesystem.get_file_info(FileSelector(parent, allow_not_found=True))
        names = sorted(one.path for one in found if one.base_name.startswith("checkpoint_"))
        for path in reversed(names):
            try:
                super().restore(tune.Checkpoint(path, filesystem))
            except _HALF_WRITTEN:
                self._build(self._point)
            else:
                return

    def load_checkpoint(self, checkpoint: Any) -> None:  # noqa: ANN401 - Ray's: here a path
        """Go on from a checkpoint, with this trial's own settings."""
        self.learner.restore(Path(checkpoint))
        since = Path(checkpoint) / _SINCE
        self._since = json.loads(since.read_text()) if since.exists() else 0


@torch.no_grad()
def _latency(learner: Learner) -> float:
    """Return the fastest of some answers to one image, all its views included, in ms."""
    size, views = learner.config.image.size, learner.config.model.views
    image = torch.zeros(1, 1, size, size, device=learner.device)
    network, seconds = learner.network.eval(), []
    for _ in range(_TIMINGS):
        began = time.perf_counter()
        mean_of_views(network, image, views).cpu()
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds)
