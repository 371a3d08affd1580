"""What every data-parallel training process runs: a learner, tied to Ray Train."""

import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from btray.config import Config
from btray.core.bundle import Bundle
from btray.core.weights import Weights
from btray.data.cache import CachedRows
from btray.data.decoding import Blocks
from btray.train.board import Update
from btray.train.checkpoints import upload
from btray.train.learner import SCORE, Diverged, Learner, Rank
from btray.train.orders import Order, Orders

_WITHIN: Final = -1e30
"""Score of a checkpoint made within an epoch: below all others."""
_PENDING: Final = 2
"""Checkpoints that may be on their way at a time; a further one waits."""


class _Leaving(Exception):  # noqa: N818 - no error: the way out of an epoch
    """All ranks leave, with a checkpoint made of the step just taken."""

    def __init__(self, order: Order) -> None:
        super().__init__(order.name)
        self.order = order


class Worker:
    """One rank's learner, which goes on from Ray Train's checkpoint and reports to it."""

    def __init__(
        self,
        config: Config,
        class_names: tuple[str, ...],
        board: Any,  # noqa: ANN401 - a Ray actor handle
        threads: int,
        source: Blocks | CachedRows,
        weights: Weights | None,
        teacher: Bundle | None,
    ) -> None:
        context = ray.train.get_context()
        rank = Rank(
            context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
        )
        self.rank, self.world_size, self.board = rank.number, rank.workers, board
        self.learner = Learner(config, class_names, threads, source, weights, teacher, rank)
        self.orders = Orders(board, self.rank, self.world_size, rank.device)
        self.pending = threading.BoundedSemaphore(_PENDING)

    def run(self) -> None:
        """Train epoch by epoch, reporting global metrics and a checkpoint after each."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                self.learner.restore(Path(folder))
        reached = self.learner.progress
        self.post(
            Update(
                kind="attempt",
                epoch=reached.next_epoch,
                step=reached.next_step,
                workers=self.world_size,
            )
        )
        try:
            self._epochs()
        except _Leaving as leaving:
            self._leave(leaving.order)
        except Diverged as found:
            diverged = Update(kind="diverged", epoch=found.epoch, step=found.step, loss=found.loss)
            self.post(diverged, wait=True)

    def _epochs(self) -> None:
        learner = self.learner
        while not learner.finished:
            news = StepNews(self, learner.progress.next_epoch, learner.progress.next_step)

            def after_step(done: int, loss: Tensor, news: "StepNews" = news) -> None:
                news.on_step(done, loss)
                self._after_step(done)

            self._report(*learner.epoch(after_step))
            order = self.orders.agreed_now()
            if order and learner.progress.next_epoch < learner.config.train.epochs:
                raise _Leaving(order)

    def _leave(self, order: Order) -> None:
        """End this attempt: for good, or by failing once the checkpoint is Ray Train's latest."""
        reached = self.learner.progress
        if order == Order.STOP:
            stopped = Update(kind="stopped", epoch=reached.next_epoch, step=reached.next_step)
            self.post(stopped, wait=True)
            return
        ray.train.get_all_reported_checkpoints(
            consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED
        )
        raise RuntimeError("a worker's node or process is going; its checkpoint is made")

    def _after_step(self, done: int) -> None:
        """Make a checkpoint within the epoch, if it is time to or the ranks must leave."""
        if done == self.learner.steps:
            return  # the epoch's end makes one
        order = self.orders.agreed(done)
        every = self.learner.config.train.checkpoint_every
        if order or (every and not done % every):
            self._save_within(done)
        if order:
            raise _Leaving(order)

    def _save_within(self, done: int) -> None:
        if not torch.isfinite(self.learner.losses_so_far()):
            return  # the epoch's end will say so; the last checkpoint stays the last good one
        self.learner.progress.next_step = done
        folder = self._folder()
        if self.rank == 0:
            self.learner.save(folder)
        self.learner.save_mine(folder)
        self._send({SCORE: _WITHIN}, folder)

    def _folder(self) -> Path:
        """Make a local folder for a checkpoint, when fewer than _PENDING are on their way."""
        self.pending.acquire()
        return Path(tempfile.mkdtemp(prefix="btray-checkpoint-"))

    def _send(self, metrics: dict[str, float], folder: Path) -> None:
        """Report a checkpoint; training goes on while its files are copied to storage."""

        def copy(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            try:
                return upload(checkpoint, name)
            finally:
                self.pending.release()

        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
            checkpoint_upload_fn=copy,
        )

    def _report(self, metrics: dict[str, float], score: float) -> None:
        if self.rank != 0:
            background = ray.train.CheckpointUploadMode.ASYNC  # in turn, like all before it
            ray.train.report(metrics, checkpoint=None, checkpoint_upload_mode=background)
            return
        folder = self._folder()
        self.learner.save(folder)
        self.learner.save_answers(folder)
        self._send({**metrics, SCORE: score}, folder)
        epochs = self.learner.config.train.epochs
        news = Update(kind="epoch", epoch=int(metrics["epoch"]), epochs=epochs, metrics=metrics)
        self.post(news)

    def post(self, update: Update, wait: bool = False) -> None:
        """Tell the board, if this is rank 0."""
        if self.rank == 0:
            posted = self.board.post.remote({**update, "time": time.time()})
            if wait:
                ray.get(posted)


class StepNews:
    """Tells the board how an epoch goes, at the first step and then once a second."""

    def __init__(self, worker: Worker, epoch: int, start: int) -> None:
        self.worker, self.epoch, self.start = worker, epoch, start
        self.started = self.told = time.perf_counter()

    def on_step(self, done: int, loss: Tensor) -> None:
        """Post the loss and the rate, if it is time to."""
        now = time.perf_counter()
        if done > self.start + 1 and now - self.told < 1:
            return
        self.told = now
        learner, config = self.worker.learner, self.worker.learner.config
        pace = (now - self.started) / (done - self.start)
        steps_left = (config.train.epochs - self.epoch) * learner.steps - done
        self.worker.post(
            Update(
                kind="step",
                epoch=self.epoch,
                epochs=config.train.epochs,
                step=done,
                steps=learner.steps,
                loss=float(loss),
                images_per_second=config.data.batch_size / pace,
                seconds_left=steps_left * pace,
            )
        )
