"""Optimiser, learning-rate schedule and loss."""

import math

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from btray.config import TrainConfig


def create_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Build the optimiser; biases and normalisation layers get no weight decay."""
    optimizer: Optimizer = create_optimizer_v2(
        model,
        opt=config.optimizer,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=0.9,
        fused=True,
    )
    return optimizer


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the factor on the peak learning rate at an optimiser step, in 0..1.

    Linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def create_scheduler(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LambdaLR:
    """Build the schedule, to be stepped after every optimiser step."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, warmup, total))


class CrossEntropy(nn.Module):
    """Cross-entropy with class weights, divided by the rows and not by their weights.

    So the mean over the ranks' equal shares is the loss of the whole batch, whatever the
    number of ranks; `inverse_frequency` weights are 1 on average over the rows.
    """

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits [batch, classes] for labels [batch]."""
        total = functional.cross_entropy(
            logits,
            labels,
            self.get_buffer("weight") if self.weight is not None else None,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / len(labels)


def inverse_frequency(counts: Tensor) -> Tensor:
    """Return class weights [classes] for counts [classes]: mean 1 over the rows.

    A class without rows weighs 0, not infinity, which label smoothing would spread.
    """
    present = counts > 0
    return present * counts.sum() / (present.sum() * counts.clamp(min=1).to(torch.float32))
