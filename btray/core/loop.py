"""One epoch of training and one pass of evaluation, in torch alone."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from btray.config import TrainConfig

Batches = Iterable[tuple[Tensor, Tensor]]
"""Pairs of float32 images [batch, 1, size, size] and int64 labels [batch]."""


@dataclass(frozen=True)
class Precision:
    """Where and in which floating-point type a network computes."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, setting: str, device: torch.device) -> "Precision":
        """Resolve `auto`: bfloat16 on a GPU that supports it, float32 elsewhere."""
        if setting == "auto":
            native = device.type == "cuda" and torch.cuda.is_bf16_supported(False)
            return cls(device, torch.bfloat16 if native else torch.float32)
        return cls(device, torch.bfloat16 if setting == "bfloat16" else torch.float32)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which a forward pass runs."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )


def train_epoch(
    model: nn.Module,
    batches: Batches,
    loss: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    config: TrainConfig,
    precision: Precision,
    on_step: Callable[[int, Tensor], None],
) -> Tensor:
    """Take one optimiser step a batch; return the loss of every step [steps], float32.

    `on_step(step, loss)` is called after every step; the loss is still on the device.
    """
    model.train()
    losses = []
    for step, (images, labels) in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            logits = model(images.contiguous(memory_format=torch.channels_last))
        value = loss(logits.float(), labels)
        value.backward()
        if config.gradient_clip:
            clip_grad_norm_(model.parameters(), config.gradient_clip, foreach=True)
        optimizer.step()
        scheduler.step()
        losses.append(value.detach())
        on_step(step, losses[-1])
    return torch.stack(losses)


@torch.no_grad()  # not inference_mode: a network that keeps what it computed can train on
def predict_logits(model: nn.Module, batches: Iterable[Tensor], precision: Precision) -> Tensor:
    """Return float32 logits [rows, classes] on the CPU for batches of images."""
    model.eval()
    outputs = []
    for images in batches:
        with precision.autocast():
            logits = model(images.contiguous(memory_format=torch.channels_last))
        outputs.append(logits.float().cpu())
    return torch.cat(outputs) if outputs else torch.empty(0)


def first_non_finite(losses: Tensor) -> int | None:
    """Return the index of the first loss that is NaN or infinite, if any."""
    bad = torch.nonzero(~torch.isfinite(losses))
    return int(bad[0]) if len(bad) else None
