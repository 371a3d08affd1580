"""A small picture of a slice's head that survives copying; no Ray."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btray.core.head import Box, head_box

THUMBNAIL: Final = 64
"""Side of the thumbnail of the head, in pixels."""
FRAME: Final = 32
"""Side of the thumbnail of the whole image, in pixels."""


def frame(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a slice [height, width] as [FRAME, FRAME], averaged and stretched."""
    small = Image.fromarray(pixels).resize((FRAME, FRAME), Image.Resampling.BOX)
    return np.asarray(small)


def thumbnail(pixels: NDArray[np.uint8], box: Box | None = None) -> NDArray[np.uint8]:
    """Return the head of a slice [height, width], uint8, as [THUMBNAIL, THUMBNAIL], uint8.

    The head's box, looked for unless given, is stretched to a square, the background is 0, and the
    grey values are equalised (each is the share of pixels not brighter), which undoes any
    change of brightness, contrast or gamma.
    """
    rows, columns = box or head_box(pixels)
    small = Image.fromarray(pixels).resize(
        (THUMBNAIL, THUMBNAIL),
        Image.Resampling.BOX,
        box=(columns.start, rows.start, columns.stop, rows.stop),
    )
    values = np.asarray(small)
    low, high = np.percentile(values, (2, 99))
    ranks = np.cumsum(np.bincount(values.ravel(), minlength=256)) / values.size
    ranks[: int(low + 0.1 * (high - low)) + 1] = 0
    equalised: NDArray[np.uint8] = np.round(255 * ranks).astype(np.uint8)[values]
    return equalised
