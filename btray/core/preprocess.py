"""Pixels to network input: the very same functions in training and in serving."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from btray.config import ImageConfig


def to_square(image: NDArray[np.uint8], config: ImageConfig) -> NDArray[np.uint8]:
    """Resize one slice [height, width] to [size, size], uint8, antialiased bilinear.

    This is the deterministic prefix of preprocessing: its result is what is cached.
    """
    height, width = image.shape
    size = config.size
    if config.fit == "stretch" or height == width:
        new_height, new_width = size, size
    else:
        ratio = size / max(height, width)
        new_height, new_width = max(1, round(height * ratio)), max(1, round(width * ratio))
    resized = transforms.resize(
        torch.from_numpy(np.array(image, copy=True))[None], [new_height, new_width], antialias=True
    )
    square = np.zeros((size, size), dtype=np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square[top : top + new_height, left : left + new_width] = resized[0].numpy()
    return square


def to_unit(images: Tensor) -> Tensor:
    """Scale uint8 [batch, size, size] to float32 [batch, 1, size, size] in 0..1."""
    return images.unsqueeze(1).to(torch.float32).div_(255)


def normalise(images: Tensor, config: ImageConfig) -> Tensor:
    """Subtract the mean and divide by the standard deviation, in place; 0..1 in."""
    return images.sub_(config.mean).div_(config.std)
