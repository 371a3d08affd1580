"""Decoded squares to network input, on the batch's own device."""

from typing import Final

import torch
from torch import Tensor

from btray.config import ImageConfig

_FLAT: Final = 1 / 255
"""Smaller standard deviations are those of blank images: they are not blown up."""


def to_unit(images: Tensor) -> Tensor:
    """Scale uint8 [batch, size, size] to float32 [batch, 1, size, size] in 0..1."""
    return images.unsqueeze(1).float().div_(255)


def normalise(images: Tensor, config: ImageConfig) -> Tensor:
    """Subtract a mean and divide by a standard deviation, in place; [batch, 1, size, size].

    `fixed` scaling takes both from the settings, `zscore` from each image; 0..1 in.
    """
    if config.scaling == "zscore":
        deviation, mean = torch.std_mean(images, dim=(1, 2, 3), correction=0, keepdim=True)
        return images.sub_(mean).div_(deviation.clamp_min(_FLAT))
    return images.sub_(config.mean).div_(config.std)
