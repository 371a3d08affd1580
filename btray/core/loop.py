"""One epoch of training and one pass of evaluation, in torch alone."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from btray.config import TrainConfig
from btray.errors import UserError

Batches = Iterable[tuple[Tensor, Tensor]]
"""Pairs of float32 images [batch, 1, size, size] and int64 labels [batch]."""


@dataclass(frozen=True)
class Precision:
    """Where and in which floating-point type a network computes."""

    device: torch.device
    dtype: torch.dtype
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False), compare=False
    )
    """Scales the loss of float16; for other types it does nothing."""

    @classmethod
    def choose(
        cls, setting: str, device: torch.device, network: nn.Module | None = None
    ) -> "Precision":
        """Resolve `auto`: bfloat16 where this device computes this network faster in it.

        That is a GPU that supports it, and a CPU with matrix units for it (AMX) when all the
        network's convolutions are dense: depthwise ones take twice as long as in float32.

        Raises:
            UserError: float16 without a GPU.

        """
        if setting == "auto":
            if device.type == "cuda":
                faster = torch.cuda.is_bf16_supported(False)
            else:
                matrix_units = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16")
                faster = bool(matrix_units) and network is not None and _is_dense(network)
            setting = "bfloat16" if faster else "float32"
        if setting == "float16" and device.type != "cuda":
            raise UserError("train.precision: float16 needs a GPU; take bfloat16 or float32")
        scaler = torch.amp.GradScaler(device.type, enabled=setting == "float16")
        return cls(device, getattr(torch, setting), scaler)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which a forward pass runs."""
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )


def _is_dense(network: nn.Module) -> bool:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return all(layer.groups == 1 for layer in layers)


def train_epoch(
    model: nn.Module,
    batches: Batches,
    loss: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    config: TrainConfig,
    precision: Precision,
    on_step: Callable[[int, Tensor], None],
    still: Sequence[nn.Module] = (),
) -> Tensor:
    """Take one optimiser step a batch; return the loss of every step [steps], float32.

    `on_step(step, loss)` is called after every step; the loss is still on the device. Layers
    that stand `still` compute as in evaluation, their statistics unchanged. A
    `float16` loss is scaled so that small gradients are not lost; a step whose gradients
    overflow is left out and the scale lowered (Micikevicius et al. 2018).
    """
    model.train()
    for layer in still:
        layer.eval()
    losses = []
    for step, (images, labels) in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        losses.append(_backward(model, images, labels, loss, config.accumulation, precision))
        precision.scaler.unscale_(optimizer)
        if config.gradient_clip:
            clip_grad_norm_(model.parameters(), config.gradient_clip, foreach=True)
        precision.scaler.step(optimizer)
        precision.scaler.update()
        scheduler.step()
        on_step(step, losses[-1])
    return torch.stack(losses)


def _backward(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: nn.Module,
    portions: int,
    precision: Precision,
) -> Tensor:
    """Add up the gradients of a batch, computed in portions; return its loss, detached."""
    total = torch.zeros((), device=images.device)
    # As many on every rank, whose shares may differ by an image: layers may exchange statistics.
    portions = max(1, min(portions, len(images)))
    parts = list(zip(images.tensor_split(portions), labels.tensor_split(portions), strict=True))
    for number, (some, theirs) in enumerate(parts, start=1):
        with _exchange(model, number == len(parts)), precision.autocast():
            logits = model(some.contiguous(memory_format=torch.channels_last))
            value = loss(logits.float(), theirs) * (len(some) / len(images))
            precision.scaler.scale(value).backward()
        total += value.detach()
    return total


def _exchange(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Let ranks exchange their gradients once a batch, with its last portion."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


@torch.no_grad()  # not inference_mode: a network that keeps what it computed can train on
def predict_logits(
    model: nn.Module, batches: Iterable[Tensor], precision: Precision, views: int = 1
) -> Tensor:
    """Return float32 logits [rows, classes] on the CPU for batches of images.

    With two `views` they are the mean over each image and its mirror image.
    """
    model.eval()
    outputs = []
    for images in batches:
        with precision.autocast():
            outputs.append(mean_of_views(model, images, views).cpu())
    return torch.cat(outputs) if outputs else torch.empty(0)


def mean_of_views(model: nn.Module, images: Tensor, views: int) -> Tensor:
    """Return float32 logits [batch, classes]; of two views, the image's and its mirror image's."""
    seen = [images, images.flip(-1)][:views]
    answers = [model(view.contiguous(memory_format=torch.channels_last)) for view in seen]
    return torch.stack([logits.float() for logits in answers]).mean(dim=0)


def first_non_finite(losses: Tensor) -> int | None:
    """Return the index of the first loss that is NaN or infinite, if any."""
    bad = torch.nonzero(~torch.isfinite(losses))
    return int(bad[0]) if len(bad) else None
