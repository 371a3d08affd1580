"""Decoded squares to network input, on the batch's own device."""

from torch import Tensor

from btray.config import ImageConfig


def to_unit(images: Tensor) -> Tensor:
    """Scale uint8 [batch, size, size] to float32 [batch, 1, size, size] in 0..1."""
    return images.unsqueeze(1).float().div_(255)


def normalise(images: Tensor, config: ImageConfig) -> Tensor:
    """Subtract the mean and divide by the standard deviation, in place; 0..1 in."""
    return images.sub_(config.mean).div_(config.std)
