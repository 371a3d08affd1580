"""Pixels to squares: the very same function in training and in serving.

Pillow alone, so that processes that only decode need not load torch, and the result is the
same on every processor (torch's own resize differs with the vector unit).
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    square = np.zeros((size, size), dtype=np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square[top : top + new_height, left : left + new_width] = np.asarray(resized)
    return square
