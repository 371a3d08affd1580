"""One rank's network and its data, trained epoch by epoch; knows nothing of Ray Train."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from btray.config import Config
from btray.core.allocator import keep_freed_memory
from btray.core.bundle import Bundle
from btray.core.distill import Teacher
from btray.core.features import feature_count, predict_with_features
from btray.core.freezing import freeze, frozen_steps
from btray.core.loop import Precision, first_non_finite, train_epoch
from btray.core.mixing import mix
from btray.core.optim import (
    DistillationLoss,
    LearningRate,
    Loss,
    create_optimizer,
    inverse_frequency,
    with_teacher,
)
from btray.core.weights import Weights, initialise
from btray.core.zoo import create_model
from btray.data.cache import CachedRows
from btray.data.decoding import Blocks
from btray.data.stream import Rows, Shard

WEIGHTS = "model.safetensors"
STATE = "state.pt"
PROGRESS = "progress.json"
RANK = "rank-{:04d}.safetensors"
VALIDATION = "validation.safetensors"
FEATURE_ROWS = 4096
"""Most rows of validation whose features are kept."""
TRAINED = "trained.safetensors"
"""The weights themselves, where WEIGHTS are their moving average."""
SCORE = "val_score"
"""The metric that chooses the best checkpoint: higher is better."""
_AVERAGE: Final = "average:"
_MIXING: Final = 1
"""Tells the draws of mixing from those of augmentation."""


@dataclass
class Progress:
    """What a run has reached; stored as JSON in every checkpoint."""

    next_epoch: int = 0
    next_step: int = 0
    """Steps of that epoch already taken."""
    best_score: float | None = None
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)

    def add(self, metrics: dict[str, float], score: float) -> None:
        """Record a finished epoch and its score, of which higher is better."""
        self.history.append(metrics)
        self.next_epoch += 1
        self.next_step = 0
        if self.best_score is None or score > self.best_score:
            self.best_score = score
            self.best_epoch = self.next_epoch - 1

    def exhausted(self, patience: int) -> bool:
        """Say whether the score has not improved for `patience` epochs."""
        return bool(patience) and self.next_epoch - 1 - self.best_epoch >= patience


class Diverged(Exception):  # noqa: N818 - a finding about the run, not a fault of the program
    """The loss, or a validation answer, became NaN or infinite."""

    def __init__(self, epoch: int, step: int, loss: float) -> None:
        super().__init__(f"the loss became {loss} at epoch {epoch + 1}, step {step + 1}")
        self.epoch, self.step, self.loss = epoch, step, loss


AfterStep = Callable[[int, Tensor], None]
"""Told the number of an epoch's steps done, and the loss of the last [], still on the device."""


@dataclass(frozen=True)
class Rank:
    """Which of the data-parallel processes this is, and where it computes."""

    number: int
    workers: int
    device: torch.device


class Learner:
    """A network, what it is trained with, and how far it has come."""

    def __init__(
        self,
        config: Config,
        class_names: tuple[str, ...],
        threads: int,
        source: Blocks | CachedRows,
        weights: Weights | None,
        teacher: Bundle | None,
        rank: Rank,
        learned: tuple[str, ...] = ("train",),
    ) -> None:
        self.config, self.class_names = config, class_names
        self.rank, self.world_size, self.device = rank.number, rank.workers, rank.device
        keep_freed_memory()
        torch.set_num_threads(threads)
        set_determinism(config.train.deterministic)
        torch.manual_seed(config.seed)
        self.network = self._build(weights)
        self.precision = Precision.choose(config.train.precision, self.device, self.network)
        self.teacher = teacher if teacher is None else Teacher(teacher, self.device, self.precision)
        self.model: nn.Module | None = None
        self.frozen, self.still = False, list[nn.Module]()
        self.shard = self._shard(source, learned)
        decay = config.train.ema
        self.average = ModelEmaV3(self.network, decay, use_warmup=True) if decay else None
        self.optimizer = create_optimizer(self.network, config.train)
        self.own = [(group["lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        """Peak learning rate and weight decay of every group of parameters."""
        self.steps = self.shard.steps(config.data.batch_size)
        self.rate = LearningRate(config.train, self.steps)
        self.scheduler = LambdaLR(self.optimizer, self.rate)
        self.progress = Progress()
        self.taken: list[Tensor] = []
        """This rank's losses [] or [n] of the epoch's steps so far."""
        self.answers: dict[str, Tensor] = {}
        """Logits and labels of the latest validation."""

    @property
    def finished(self) -> bool:
        """Say whether the epochs, or the patience, are used up."""
        train = self.config.train
        return self.progress.next_epoch >= train.epochs or self.progress.exhausted(train.patience)

    def _shard(self, source: Blocks | CachedRows, learned: tuple[str, ...]) -> Shard:
        rows = Rows.fetch(source, self.class_names, self.config.image.size)
        return Shard(
            rows,
            self.config.image,
            self.config.augment,
            self.config.seed,
            self.rank,
            self.world_size,
            self.device,
            self.config.data.balanced,
            learned,
        )

    def _build(self, weights: Weights | None) -> nn.Module:
        size = self.config.image.size
        network = create_model(self.config.model, len(self.class_names), size)
        if weights is not None:
            initialise(network, weights)
        if self.config.train.sync_batch_norm and self.world_size > 1:
            network = convert_sync_batchnorm(network)
        network.to(self.device)
        if self.config.train.compile:
            network.compile()
        return network

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept: the moving average, if there is one."""
        return self.network if self.average is None else self.average.module

    def _distribute(self, frozen: bool) -> nn.Module:
        """Let the ranks exchange the gradients of what learns in this phase."""
        if self.model is None or frozen != self.frozen:
            # Seeds make the ranks' weights equal. Batch-norm statistics are averaged once an
            # epoch, not broadcast every step or from the first rank now.
            self.model, self.frozen = None, frozen  # the old one's hooks go first
            self.still = freeze(self.network, frozen, self.config.train.freeze_batch_norm)
            self.model = self.network
            if self.world_size > 1:
                devices = [self.device] if self.device.type == "cuda" else None
                self.model = DistributedDataParallel(
                    self.network,
                    devices,
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                    init_sync=False,
                )
        return self.model

    def _loss(self) -> nn.Module:
        weight = None
        if self.config.train.class_weights:
            labels = self.shard.rows.labels[self.shard.rows.indices(*self.shard.learned)]
            counts = torch.bincount(torch.from_numpy(labels), minlength=len(self.class_names))
            weight = inverse_frequency(counts).to(self.device)
        train = self.config.train
        gamma = train.focal_gamma if train.loss == "focal" else None
        loss: nn.Module = Loss(weight, train.label_smoothing, gamma)
        if self.teacher is not None:
            loss = DistillationLoss(loss, train.distillation, train.distillation_temperature)
        batch = self.config.data.batch_size
        share = self.shard.share(batch)
        part = (share.stop - share.start) * self.world_size / batch
        return loss if part == 1 else Weighted(loss, part)

    def epoch(self, after_step: AfterStep) -> tuple[dict[str, float], float]:
        """Train the rest of an epoch, and validate; return its metrics and its score.

        The score is `train.metric`'s, of which higher is better.

        Raises:
            Diverged: the loss or an answer is not finite.

        """
        epoch, started = self.progress.next_epoch, time.perf_counter()
        steps = self.steps - self.progress.next_step
        losses = self.train(after_step)
        seconds = time.perf_counter() - started
        answers = self._validate()
        if not torch.isfinite(answers["logits"]).all():
            raise Diverged(epoch, self.steps - 1, float("nan"))
        self.answers = answers
        scores = validation_metrics(answers["logits"], answers["labels"])
        metrics: dict[str, float] = {
            "epoch": float(epoch),
            "train_loss": float(losses.mean()),
            "images_per_second": steps * self.config.data.batch_size / seconds,
            "learning_rate": float(self.scheduler.get_last_lr()[0]),
            **scores,
        }
        self.rate.observe(scores["val_loss"])
        score = score_of(scores, self.config.train.metric)
        self.progress.add(metrics, score)
        return metrics, score

    def train(self, after_step: AfterStep) -> Tensor:
        """Take the rest of an epoch's steps; return the mean loss of each of all [steps].

        Raises:
            Diverged: a loss is not finite.

        """
        epoch = self.progress.next_epoch
        for start, end, frozen in self._phases(epoch):
            self._train_phase(epoch, start, end, frozen, after_step)
        losses, self.taken = torch.cat(self.taken), []
        if self.world_size > 1:
            torch.distributed.all_reduce(losses)
            losses /= self.world_size
            # In the same order on all ranks, which a set would not have.
            for network in dict.fromkeys((self.network, self.evaluated)):
                distribute_bn(network, self.world_size, reduce=True)
        losses = losses.cpu()
        bad = first_non_finite(losses)
        if bad is not None:
            raise Diverged(epoch, bad, float(losses[bad]))
        return losses

    def _phases(self, epoch: int) -> Iterator[tuple[int, int, bool]]:
        """Yield from which step to which the backbone stands still, and does not."""
        losses = [row["val_loss"] for row in self.progress.history if "val_loss" in row]
        until = frozen_steps(self.config.train, self.steps, losses) - epoch * self.steps
        cut = min(max(until, self.progress.next_step), self.steps)
        phases = (self.progress.next_step, cut, True), (cut, self.steps, False)
        return (phase for phase in phases if phase[0] < phase[1])

    def _train_phase(
        self, epoch: int, start: int, end: int, frozen: bool, after_step: AfterStep
    ) -> None:
        model = self._distribute(frozen)

        def on_step(number: int, loss: Tensor) -> None:
            self.taken.append(loss.view(1))
            if self.average is not None:
                self.average.update(self.network, step=epoch * self.steps + start + number)
            after_step(start + number + 1, loss)

        train_epoch(
            model,
            islice(self._batches(epoch, start), end - start),
            self._loss(),
            self.optimizer,
            self.scheduler,
            self.config.train,
            self.precision,
            on_step,
            self.still,
        )

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch from a step on, all chance set anew before each.

        So what dropout draws is a function of (seed, epoch, rank, step) like the batch.
        """
        batches = self.shard.training(epoch, self.config.data.batch_size, start)
        for step, (images, labels) in enumerate(batches, start):
            entropy = [self.config.seed, epoch, self.rank, step]
            _seed_everything(entropy)
            draws = np.random.default_rng([*entropy, _MIXING])
            images, targets = mix(images, labels, len(self.class_names), self.config.train, draws)
            if self.teacher is not None:
                targets = with_teacher(targets, self.teacher(images))
            yield images, targets

    def losses_so_far(self) -> Tensor:
        """Return the sum [] of all ranks' losses of the epoch's steps so far."""
        total = torch.cat(self.taken).sum()
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        return total

    def save_mine(self, folder: Path) -> None:
        """Write what differs between the ranks until the epoch's end: statistics and losses."""
        mine = {name: value.contiguous().cpu() for name, value in self.network.named_buffers()}
        for name, value in self.evaluated.named_buffers():
            mine[f"{_AVERAGE}{name}"] = value.contiguous().cpu().clone()
        mine["losses"] = torch.cat(self.taken).cpu()
        save_file(mine, folder / RANK.format(self.rank))

    def _validate(self) -> dict[str, Tensor]:
        """Return what the network answers to the whole validation split, the same on every rank.

        `logits` [rows, classes] and `labels` [rows], and of a network that has them `features`
        [some rows, features], float16: of all rows, or of every second, third … of many.
        """
        size = self.config.data.evaluation_batch_size
        # In float32 as in `Predictor`: what is calibrated here is what will be served.
        exact = Precision.choose("float32", self.device)
        batches = self.shard.evaluation("validation", size)
        views = self.config.model.views
        mine, features = predict_with_features(self.evaluated, batches, exact, views)
        indices = self.shard.rows.indices("validation")
        positions = torch.arange(self.rank, len(indices), self.world_size)
        logits = torch.zeros(len(indices), len(self.class_names))
        if len(mine):
            logits[positions] = mine
        answers = {
            "logits": self._summed(logits),
            "labels": torch.from_numpy(self.shard.rows.labels[indices]),
        }
        width = feature_count(self.evaluated)
        if width is not None:
            stride = -(-len(indices) // FEATURE_ROWS)
            kept = torch.zeros(-(-len(indices) // stride), width)
            if features is not None:
                chosen = positions % stride == 0
                kept[positions[chosen] // stride] = features[chosen]
            answers["features"] = self._summed(kept).half()
        return answers

    def _summed(self, parts: Tensor) -> Tensor:
        """Return the sum over all ranks, on the CPU."""
        if self.world_size == 1:
            return parts
        parts = parts.to(self.device)
        torch.distributed.all_reduce(parts)
        return parts.cpu()

    def save(self, folder: Path) -> None:
        """Write all that is the same on every rank."""
        save_file(_on_cpu(self.evaluated), folder / WEIGHTS)
        if self.average is not None:
            save_file(_on_cpu(self.network), folder / TRAINED)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
        }
        torch.save(state, folder / STATE)
        (folder / PROGRESS).write_text(json.dumps(asdict(self.progress)))

    def save_answers(self, folder: Path) -> None:
        """Write what the latest validation answered."""
        save_file(self.answers, folder / VALIDATION)

    def restore(self, directory: Path) -> None:
        """Go on from a checkpoint, of any number of workers."""
        self.evaluated.load_state_dict(load_file(directory / WEIGHTS))
        if self.average is not None:
            self.network.load_state_dict(load_file(directory / TRAINED))
        state = torch.load(directory / STATE, weights_only=True, map_location=self.device)
        self.progress = Progress(**json.loads((directory / PROGRESS).read_text()))
        self.taken = []
        if (directory / VALIDATION).exists():
            self.answers = load_file(directory / VALIDATION)
        if self.progress.next_step:
            mine = _of_rank(directory, self.rank, self.world_size)
            self.taken = [mine.pop("losses").to(self.device)]
            averaged = {k: mine.pop(k) for k in list(mine) if k.startswith(_AVERAGE)}
            self.network.load_state_dict(mine, strict=False)
            self.evaluated.load_state_dict(
                {k.removeprefix(_AVERAGE): v for k, v in averaged.items()}, strict=False
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        # Which brings back the epochs the run began with: they may have been changed since.
        self.rate.total_steps = self.config.train.epochs * self.steps
        self.precision.scaler.load_state_dict(state["scaler"])
        self._take_own_rates()

    def _take_own_rates(self) -> None:
        """Go on with this learner's rates and decays, where the checkpoint's were others."""
        for group, (rate, decay) in zip(self.optimizer.param_groups, self.own, strict=True):
            group["weight_decay"] = decay
            if group["initial_lr"] != rate:
                group["lr"] *= rate / group["initial_lr"]
                group["initial_lr"] = rate
        self.scheduler.base_lrs = [rate for rate, _ in self.own]


class Weighted(nn.Module):
    """A loss times a rank's part of the batch, where the mean over ranks is to be the batch's."""

    def __init__(self, loss: nn.Module, part: float) -> None:
        super().__init__()
        self.loss, self.part = loss, part

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted loss; 1 is the weight of an even share."""
        return torch.as_tensor(self.loss(logits, targets)) * self.part


def _of_rank(directory: Path, rank: int, world_size: int) -> dict[str, Tensor]:
    """Read what a rank had for itself within an epoch: running statistics and losses.

    Of another number of ranks, all take the mean: of the losses it is what the epoch's end
    would have made, of the statistics what it makes of them.
    """
    files = sorted(directory.glob("rank-*.safetensors"))
    if len(files) == world_size:
        return load_file(directory / RANK.format(rank))
    ranks = [load_file(file) for file in files]
    return {
        name: torch.stack([mine[name] for mine in ranks]).mean(dim=0)
        if first.is_floating_point()
        else first
        for name, first in ranks[0].items()
    }


def _on_cpu(network: nn.Module) -> Weights:
    return {name: value.contiguous().cpu() for name, value in network.state_dict().items()}


def set_determinism(exact: bool) -> None:
    """Choose between algorithms that repeat to the bit and the fastest; before CUDA is used."""
    if exact:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(exact)
    torch.backends.cudnn.benchmark = not exact


def score_of(metrics: Mapping[str, float], metric: str) -> float:
    """Return an epoch's value of a `train.metric`, turned so that higher is better."""
    value = metrics[f"val_{metric}"]
    return -value if metric == "loss" else value


def validation_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return loss, accuracy, macro-F1 and macro AUROC of logits [rows, classes], keys `val_…`.

    The last is left out when a class has no rows.
    """
    # scikit-learn takes a second to load: not before the first step.
    from btray.core.metrics import macro_auroc, metrics_from_confusion

    classes = logits.shape[1]
    counts = torch.bincount(labels * classes + logits.argmax(dim=1), minlength=classes**2)
    scores = metrics_from_confusion(counts.view(classes, classes).numpy())
    area = macro_auroc(labels.numpy(), logits.double().softmax(dim=1).numpy())
    return {
        "val_loss": float(functional.cross_entropy(logits, labels)),
        "val_accuracy": float(scores["accuracy"]),
        "val_macro_f1": float(scores["macro_f1"]),
        **({} if area is None else {"val_macro_auroc": area}),
    }


def _seed_everything(entropy: list[int]) -> None:
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
