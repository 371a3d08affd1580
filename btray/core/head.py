"""Where in a slice the head is."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_FOREGROUND: Final = 0.1
"""Share of the bright end of the grey values above which a pixel is not background."""
_SMALLEST: Final = 0.02
"""Smaller foregrounds, as a share of the slice, are not taken for a head."""

Box = tuple[slice, slice]
"""Rows and columns."""


def foreground(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where the head is [height, width]: the largest bright piece, holes filled.

    All True when there is no such piece: a blank slice, or one without a dark background.
    """
    threshold = max(8.0, _FOREGROUND * float(np.percentile(pixels, 99)))
    pieces, count = ndimage.label(ndimage.binary_opening(pixels > threshold, iterations=2))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    if sizes.max() < _SMALLEST * pixels.size:
        return np.ones(pixels.shape, dtype=np.bool_)
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(pieces == sizes.argmax())
    return filled


def head_box(pixels: NDArray[np.uint8], margin: float = 0.0) -> Box:
    """Return the box of the head in a slice [height, width], or of the whole slice.

    `margin` is added on every side, as a fraction of the box's longer side, up to the
    edge of the slice.
    """
    head = foreground(pixels)
    spans = [np.flatnonzero(head.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    border = round(margin * max(int(last - first) + 1 for first, last in spans))
    (top, bottom), (left, right) = (
        (max(0, int(first) - border), min(length, int(last) + 1 + border))
        for (first, last), length in zip(spans, pixels.shape, strict=True)
    )
    return slice(top, bottom), slice(left, right)
