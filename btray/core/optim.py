"""Optimiser, learning-rate schedule and loss."""

import difflib
import math
from typing import Any, Final

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from btray.config import TrainConfig
from btray.errors import UserError

_FUSED: Final = ("adamw", "sgd", "adam")
"""Optimisers with a fused kernel."""


def create_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Build one of timm's optimisers; biases and normalisation layers get no weight decay.

    Raises:
        UserError: no optimiser of that name (nearest names given), or one that needs what is
            not here: second derivatives, a GPU, a library.

    """
    known = [str(name) for name in list_optimizers()]
    if config.optimizer not in known:
        close = difflib.get_close_matches(config.optimizer, known, n=3)
        hint = f"nearest: {', '.join(close)}" if close else "see `timm.optim.list_optimizers()`"
        raise UserError(f"train.optimizer: none is called {config.optimizer!r}; {hint}")
    fused: dict[str, Any] = {"fused": True} if config.optimizer in _FUSED else {}
    if get_optimizer_info(config.optimizer).second_order:
        raise UserError(
            f"train.optimizer: {config.optimizer} needs second derivatives, which btray does not "
            "compute; take another"
        )
    try:
        optimizer: Optimizer = create_optimizer_v2(
            model,
            opt=config.optimizer,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=0.9,
            layer_decay=config.layer_decay if config.layer_decay < 1 else None,
            **fused,
        )
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"train.optimizer: {config.optimizer} cannot be used: {reason}") from None
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
    return optimizer


class LearningRate:
    """The factor on the peak learning rate, at every optimiser step.

    A callable for LambdaLR, which keeps its attributes in its state: `plateau` has some.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.schedule, self.factor = config.schedule, config.decay_factor
        self.warmup_steps = round(config.warmup_epochs * steps_per_epoch)
        self.total_steps = config.epochs * steps_per_epoch
        self.decay_steps = max(1, round(config.decay_epochs * steps_per_epoch))
        self.decay_epochs = config.decay_epochs
        self.best_loss, self.waited, self.decays = math.inf, 0, 0

    def __call__(self, step: int) -> float:
        """Return the factor, in 0..1."""
        if step < self.warmup_steps:
            rise = (step + 1) / self.warmup_steps
            return _cosine(1 - rise) if self.schedule == "one_cycle" else rise
        if self.schedule == "step":
            return self.factor ** ((step - self.warmup_steps) // self.decay_steps)
        if self.schedule == "plateau":
            return self.factor**self.decays
        rest = max(1, self.total_steps - self.warmup_steps)
        return _cosine(min(1.0, (step - self.warmup_steps) / rest))

    def observe(self, validation_loss: float) -> None:
        """Take note of an epoch's validation loss: `plateau` decays when it stalls."""
        self.waited = 0 if validation_loss < self.best_loss else self.waited + 1
        self.best_loss = min(self.best_loss, validation_loss)
        if self.waited >= self.decay_epochs:
            self.waited, self.decays = 0, self.decays + 1


def _cosine(progress: float) -> float:
    """Return half a cosine from 1 to 0 (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def create_scheduler(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LambdaLR:
    """Build the schedule, to be stepped after every optimiser step."""
    return LambdaLR(optimizer, LearningRate(config, steps_per_epoch))


class Loss(nn.Module):
    """Cross-entropy or focal loss of class probabilities, divided by the rows.

    With class weights it is not divided by their sum: so the mean over the ranks' equal
    shares is the loss of the whole batch, whatever the number of ranks; `inverse_frequency`
    weights are 1 on average over the rows. The focal loss is Lin et al.'s (2017).
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits [batch, classes] for labels [batch] or shares like them."""
        weight = self.get_buffer("weight") if self.weight is not None else None
        if self.focal_gamma is None:
            total = functional.cross_entropy(
                logits, targets, weight, reduction="sum", label_smoothing=self.label_smoothing
            )
            return total / len(targets)
        shares = targets
        if targets.ndim == 1:
            shares = functional.one_hot(targets, logits.shape[1]).to(logits.dtype)
        shares = shares * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        logs = functional.log_softmax(logits, dim=1)
        losses = -shares * (1 - logs.exp()) ** self.focal_gamma * logs
        if weight is not None:
            losses = losses * weight
        return losses.sum() / len(targets)


class DistillationLoss(nn.Module):
    """A loss of the labels and the divergence from a teacher's answers, as a weighted mean.

    The second is the Kullback-Leibler divergence of softened probabilities, times the squared
    temperature so that its gradient does not shrink with it (Hinton et al. 2015).
    """

    def __init__(self, labels: nn.Module, weight: float, temperature: float) -> None:
        super().__init__()
        self.labels, self.weight, self.temperature = labels, weight, temperature

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits [batch, classes] for targets as `with_teacher` makes them."""
        shares, teacher = targets.unbind(dim=1)
        own: Tensor = self.labels(logits, shares)
        divergence = functional.kl_div(
            (logits / self.temperature).log_softmax(dim=1),
            (teacher / self.temperature).log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.weight) * own + self.weight * self.temperature**2 * divergence


def with_teacher(targets: Tensor, logits: Tensor) -> Tensor:
    """Put labels [batch], or shares, and a teacher's logits into one [batch, 2, classes]."""
    shares = targets
    if targets.ndim == 1:
        shares = functional.one_hot(targets, logits.shape[1])
    return torch.stack([shares.to(logits.dtype), logits], dim=1)


def inverse_frequency(counts: Tensor) -> Tensor:
    """Return class weights [classes] for counts [classes]: mean 1 over the rows.

    A class without rows weighs 0, not infinity, which label smoothing would spread.
    """
    present = counts > 0
    return present * counts.sum() / (present.sum() * counts.clamp(min=1).to(torch.float32))
