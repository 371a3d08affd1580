"""Mixing the images of a batch, and their labels with them: mixup and CutMix."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from btray.config import TrainConfig


def mix(
    images: Tensor,
    labels: Tensor,
    classes: int,
    config: TrainConfig,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Mix float32 images [batch, 1, height, width] with the same batch in reverse.

    Returns images and class shares [batch, classes] (mixup: Zhang et al. 2018; CutMix: Yun
    et al. 2019; with both on, either half the time). With both off, images and labels
    [batch] are returned as they are.
    """
    if not config.mixup and not config.cutmix:
        return images, labels
    cut = bool(config.cutmix) and (not config.mixup or generator.random() < 0.5)
    kept = float(generator.beta(*(config.cutmix if cut else config.mixup,) * 2))
    others = images.flip(0)
    if cut:
        images, kept = _paste(images, others, kept, generator)
    else:
        images = torch.lerp(others, images, kept)
    shares = functional.one_hot(labels, classes).to(images.dtype)
    return images, torch.lerp(shares.flip(0), shares, kept)


def _paste(
    images: Tensor, others: Tensor, kept: float, generator: np.random.Generator
) -> tuple[Tensor, float]:
    """Paste one box of the others; return the images and the share that is their own."""
    height, width = images.shape[-2:]
    side = (1 - kept) ** 0.5
    tall, wide = round(height * side), round(width * side)
    top = int(generator.integers(0, height - tall + 1))
    left = int(generator.integers(0, width - wide + 1))
    images = images.clone()
    box = (..., slice(top, top + tall), slice(left, left + wide))
    images[box] = others[box]
    return images, 1 - tall * wide / (height * width)
