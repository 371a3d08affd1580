"""Pixels to squares: the very same function in training and in serving.

No torch, so that processes that only decode need not load it, and the result is the same on
every processor (torch's own resize differs with the vector unit). What follows on the batch,
scaling to floats, is in `btray.core.tensors`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btray.config import ImageConfig

Pixels = NDArray[np.uint8]
"""Grey values [height, width]."""


def to_square(image: Pixels, config: ImageConfig) -> Pixels:
    """Turn one slice [height, width] into what is cached: uint8 [size, size].

    This is the deterministic prefix of preprocessing, all of `stages`.
    """
    *_, (_, square) = stages(image, config)
    return square


def stages(image: Pixels, config: ImageConfig) -> Iterator[tuple[str, Pixels]]:
    """Yield the name and the result of each stage a slice goes through, the square last."""
    if config.crop == "head":
        from btray.core.head import head_box  # scipy: not for those who do not crop

        image = np.ascontiguousarray(image[head_box(image, config.crop_margin)])
        yield "head crop", image
    if config.clip_percentiles != (0, 100):
        image = clip_percentiles(image, *config.clip_percentiles)
        yield "percentile clip", image
    if config.clahe:
        image = equalise(image, config.clahe)
        yield "CLAHE", image
    yield config.fit, resize(image, config)


def clip_percentiles(image: Pixels, low: float, high: float) -> Pixels:
    """Stretch the grey values between two percentiles of the pixels above 0 to 0..255."""
    foreground = image[image > 0]
    if not len(foreground):
        return image
    bottom, top = np.percentile(foreground, (low, high))
    if top <= bottom:
        return image
    levels = (np.arange(256) - bottom) / (top - bottom)
    table = np.rint(levels.clip(0, 1) * 255).astype(np.uint8)
    stretched: Pixels = table[image]
    return stretched


def equalise(image: Pixels, clip_limit: float) -> Pixels:
    """Equalise the contrast locally (CLAHE, Zuiderveld 1994; scikit-image's)."""
    from skimage.exposure import equalize_adapthist  # half a second, and seldom wanted

    equalised: Pixels = np.rint(equalize_adapthist(image, clip_limit=clip_limit) * 255).astype("u1")
    return equalised


def resize(image: Pixels, config: ImageConfig) -> Pixels:
    """Resize a slice [height, width] to [size, size], antialiased bilinear."""
    height, width = image.shape
    size = config.size
    if height == width == size:
        return image.copy()
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
