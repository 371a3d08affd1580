"""Encoded bytes to squares: what training, evaluation and prediction all call."""

import numpy as np
from numpy.typing import NDArray

from btray.config import ImageConfig
from btray.core.images import decode
from btray.core.preprocess import to_square


def prepare(data: bytes, config: ImageConfig) -> NDArray[np.uint8]:
    """Decode and resize one encoded image to [size, size].

    Raises:
        ImageError: bytes that are no usable slice.

    """
    # A crop may leave half of the slice, and its resize should still not enlarge.
    needed = config.size * (2 if config.crop == "head" else 1)
    return to_square(decode(data, at_least=needed), config)
