"""What every data-parallel training process runs."""

import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from safetensors.torch import load_file, save_file
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.nn import functional

from btray.config import Config
from btray.core.allocator import keep_freed_memory
from btray.core.loop import Precision, first_non_finite, predict_logits, train_epoch
from btray.core.optim import (
    CrossEntropy,
    create_optimizer,
    create_scheduler,
    inverse_frequency,
)
from btray.core.zoo import create_model
from btray.data.cache import CachedRows
from btray.data.decoding import Blocks
from btray.data.stream import Rows, Shard
from btray.train.board import Update

WEIGHTS = "model.safetensors"
STATE = "state.pt"
PROGRESS = "progress.json"
RANK = "rank-{:04d}.safetensors"
VALIDATION = "validation.safetensors"


@dataclass
class Progress:
    """What a run has reached; stored as JSON in every checkpoint."""

    next_epoch: int = 0
    next_step: int = 0
    """Steps of that epoch already taken."""
    best_macro_f1: float = -1.0
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)

    def add(self, metrics: dict[str, float]) -> None:
        """Record a finished epoch."""
        self.history.append(metrics)
        self.next_epoch += 1
        self.next_step = 0
        if metrics["val_macro_f1"] > self.best_macro_f1:
            self.best_macro_f1 = metrics["val_macro_f1"]
            self.best_epoch = self.next_epoch - 1

    def exhausted(self, patience: int) -> bool:
        """Say whether validation macro-F1 has not improved for `patience` epochs."""
        return bool(patience) and self.next_epoch - 1 - self.best_epoch >= patience


class Worker:
    """One rank: its shard, its network, and the checkpoint it goes on from."""

    def __init__(
        self,
        config: Config,
        class_names: tuple[str, ...],
        board: Any,  # noqa: ANN401 - a Ray actor handle
        threads: int,
        source: Blocks | CachedRows,
    ) -> None:
        context = ray.train.get_context()
        self.config, self.class_names, self.board = config, class_names, board
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.precision = Precision.choose(config.train.precision, self.device)
        keep_freed_memory()
        torch.set_num_threads(threads)
        torch.manual_seed(config.seed)
        self.network = create_model(config.model, len(class_names), config.image.size)
        self.shard = self._shard(source)
        self.model = self._distribute(self.network)
        self.optimizer = create_optimizer(self.network, config.train)
        self.steps = self.shard.steps(config.data.batch_size)
        self.scheduler = create_scheduler(self.optimizer, config.train, self.steps)
        self.progress = Progress()
        self.losses = torch.empty(0, device=self.device)
        """This rank's, of the epoch's steps before the checkpoint it goes on from."""

    def run(self) -> None:
        """Train epoch by epoch, reporting global metrics and a checkpoint after each."""
        self._restore()
        reached = self.progress
        self.post(Update(kind="attempt", epoch=reached.next_epoch, step=reached.next_step))
        train = self.config.train
        while self.progress.next_epoch < train.epochs:
            if self.progress.exhausted(train.patience):
                return
            if not self._epoch(self.progress.next_epoch):
                return

    def _shard(self, source: Blocks | CachedRows) -> Shard:
        rows = Rows.fetch(source, self.class_names, self.config.image.size)
        return Shard(
            rows,
            self.config.image,
            self.config.augment,
            self.config.seed,
            self.rank,
            self.world_size,
            self.device,
        )

    def _distribute(self, network: nn.Module) -> nn.Module:
        # Batch-norm statistics are averaged once an epoch, not broadcast every step.
        options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        model: nn.Module = ray.train.torch.prepare_model(
            network, parallel_strategy_kwargs=options if self.world_size > 1 else None
        )
        return model

    def _loss(self) -> nn.Module:
        weight = None
        if self.config.train.class_weights:
            labels = self.shard.rows.labels[self.shard.rows.indices("train")]
            counts = torch.bincount(torch.from_numpy(labels), minlength=len(self.class_names))
            weight = inverse_frequency(counts).to(self.device)
        return CrossEntropy(weight, self.config.train.label_smoothing)

    def _epoch(self, epoch: int) -> bool:
        """Train and validate one epoch; return False when the loss diverged."""
        started, steps = time.perf_counter(), self.steps - self.progress.next_step
        losses = self._train(epoch)
        seconds = time.perf_counter() - started
        bad = first_non_finite(losses)
        if bad is not None:
            return self._diverged(epoch, bad, float(losses[bad]))
        logits, labels = self._validate()
        if not torch.isfinite(logits).all():
            return self._diverged(epoch, self.steps - 1, float("nan"))
        metrics: dict[str, float] = {
            "epoch": float(epoch),
            "train_loss": float(losses.mean()),
            "images_per_second": steps * self.config.data.batch_size / seconds,
            "learning_rate": float(self.scheduler.get_last_lr()[0]),
            **validation_metrics(logits, labels),
        }
        self.progress.add(metrics)
        self._report(metrics, logits, labels)
        return True

    def _diverged(self, epoch: int, step: int, loss: float) -> bool:
        self.post(Update(kind="diverged", epoch=epoch, step=step, loss=loss), wait=True)
        return False

    def _train(self, epoch: int) -> Tensor:
        start, taken = self.progress.next_step, [self.losses]
        news = StepNews(self, epoch, start)

        def on_step(number: int, loss: Tensor) -> None:
            taken.append(loss.view(1))
            news.on_step(start + number, loss)
            self._save_within(start + number + 1, taken)

        train_epoch(
            self.model,
            self._batches(epoch, start),
            self._loss(),
            self.optimizer,
            self.scheduler,
            self.config.train,
            self.precision,
            on_step,
        )
        losses, self.losses = torch.cat(taken), torch.empty(0, device=self.device)
        if self.world_size > 1:
            torch.distributed.all_reduce(losses)
            losses /= self.world_size
            distribute_bn(self.network, self.world_size, reduce=True)
        return losses.cpu()

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch from a step on, all chance set anew before each.

        So what dropout draws is a function of (seed, epoch, rank, step) like the batch.
        """
        batches = self.shard.training(epoch, self.config.data.batch_size, start)
        for step, batch in enumerate(batches, start):
            _seed_everything([self.config.seed, epoch, self.rank, step])
            yield batch

    def _save_within(self, done: int, losses: list[Tensor]) -> None:
        """Make a checkpoint after a step within the epoch, if it is time to."""
        every = self.config.train.checkpoint_every
        if not every or done % every or done == self.steps:
            return
        total = torch.cat(losses).sum()
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        if not torch.isfinite(total):
            return  # the epoch's end will say so; the last checkpoint stays the last good one
        self.progress.next_step = done
        with tempfile.TemporaryDirectory() as folder:
            if self.rank == 0:
                self._save(Path(folder))
            # Running statistics differ between the ranks until the epoch's end.
            mine = {name: value.cpu() for name, value in self.network.named_buffers()}
            save_file(
                {**mine, "losses": torch.cat(losses).cpu()}, Path(folder) / RANK.format(self.rank)
            )
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"val_macro_f1": -1.0}, checkpoint=checkpoint)

    def _validate(self) -> tuple[Tensor, Tensor]:
        """Return logits [rows, classes] and labels [rows] of the whole validation split."""
        size = self.config.data.evaluation_batch_size
        # In float32 as in `Predictor`: what is calibrated here is what will be served.
        exact = Precision.choose("float32", self.device)
        mine = predict_logits(self.network, self.shard.evaluation("validation", size), exact)
        indices = self.shard.rows.indices("validation")
        logits = torch.zeros(len(indices), len(self.class_names), device=self.device)
        if len(mine):
            logits[self.rank :: self.world_size] = mine.to(self.device)
        if self.world_size > 1:
            torch.distributed.all_reduce(logits)
        return logits.cpu(), torch.from_numpy(self.shard.rows.labels[indices])

    def _report(self, metrics: dict[str, float], logits: Tensor, labels: Tensor) -> None:
        if self.rank != 0:
            ray.train.report(metrics, checkpoint=None)
            return
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder))
            save_file({"logits": logits, "labels": labels}, Path(folder) / VALIDATION)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        epochs = self.config.train.epochs
        news = Update(kind="epoch", epoch=int(metrics["epoch"]), epochs=epochs, metrics=metrics)
        self.post(news)

    def _save(self, folder: Path) -> None:
        weights = {k: v.contiguous().cpu() for k, v in self.network.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        torch.save(state, folder / STATE)
        (folder / PROGRESS).write_text(json.dumps(asdict(self.progress)))

    def _restore(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            directory = Path(folder)
            self.network.load_state_dict(load_file(directory / WEIGHTS))
            state = torch.load(directory / STATE, weights_only=True, map_location=self.device)
            self.progress = Progress(**json.loads((directory / PROGRESS).read_text()))
            if self.progress.next_step:
                mine = load_file(directory / RANK.format(self.rank))
                self.losses = mine.pop("losses").to(self.device)
                self.network.load_state_dict(mine, strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

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

    def on_step(self, step: int, loss: Tensor) -> None:
        """Post the loss and the rate, if it is time to."""
        now = time.perf_counter()
        if step > self.start and now - self.told < 1:
            return
        self.told = now
        worker, done = self.worker, step + 1
        pace = (now - self.started) / (done - self.start)
        steps_left = (worker.config.train.epochs - self.epoch) * worker.steps - done
        worker.post(
            Update(
                kind="step",
                epoch=self.epoch,
                epochs=worker.config.train.epochs,
                step=done,
                steps=worker.steps,
                loss=float(loss),
                images_per_second=worker.config.data.batch_size / pace,
                seconds_left=steps_left * pace,
            )
        )


def validation_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return loss, accuracy and macro-F1 of logits [rows, classes], keys `val_…`."""
    # scikit-learn takes a second to load: not before the first step.
    from btray.core.metrics import metrics_from_confusion

    classes = logits.shape[1]
    counts = torch.bincount(labels * classes + logits.argmax(dim=1), minlength=classes**2)
    scores = metrics_from_confusion(counts.view(classes, classes).numpy())
    return {
        "val_loss": float(functional.cross_entropy(logits, labels)),
        "val_accuracy": float(scores["accuracy"]),
        "val_macro_f1": float(scores["macro_f1"]),
    }


def _seed_everything(entropy: list[int]) -> None:
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
