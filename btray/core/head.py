"""Where in a slice the head is."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

_LOOK_AT: Final = 128
"""Longest side at which the head is looked for, in pixels: noise is averaged away."""
_FLAT: Final = 0.12
"""A row or column whose spread is below this share of the image's holds only background."""
_TAIL: Final = 0.03
"""Share of a row's darkest and of its brightest pixels that its spread leaves out."""
_FOREGROUND: Final = 0.1
"""Share of the bright end of the grey values above which a pixel is not background."""
_SMALLEST: Final = 0.02
"""Smaller foregrounds, as a share of the slice, are not taken for a head."""

Box = tuple[slice, slice]
"""Rows and columns."""


def head_box(pixels: NDArray[np.uint8], margin: float = 0.0) -> Box:
    """Return the box of the head in a slice [height, width], uint8.

    Rows and columns without contrast are taken off the sides until none is left. So it does
    not matter how bright the background is, nor whether there is another border around it.
    A slice without any contrast is its own box. `margin` is added on every side, as a
    fraction of the box's longer side, up to the edge of the slice.
    """
    height, width = pixels.shape
    small = _reduced(pixels).astype(np.float32)
    top, bottom, left, right = _without_border(small)
    down, across = height / small.shape[0], width / small.shape[1]
    rows, columns = (
        (round(top * down), round(bottom * down)),
        (
            round(left * across),
            round(right * across),
        ),
    )
    border = round(margin * max(rows[1] - rows[0], columns[1] - columns[0]))
    return (
        slice(max(0, rows[0] - border), min(height, rows[1] + border)),
        slice(max(0, columns[0] - border), min(width, columns[1] + border)),
    )


def foreground(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where the head is [height, width]: the largest bright piece, holes filled.

    All True when there is no such piece: a blank slice, or one without a dark background.
    """
    small = _reduced(pixels)
    threshold = max(8.0, _FOREGROUND * float(np.percentile(small, 99)))
    pieces, count = ndimage.label(ndimage.binary_opening(small > threshold))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    if sizes.max() < _SMALLEST * small.size:
        return np.ones(pixels.shape, dtype=np.bool_)
    filled = ndimage.binary_fill_holes(pieces == sizes.argmax())
    height, width = pixels.shape
    return np.asarray(Image.fromarray(filled).resize((width, height), Image.Resampling.NEAREST))


def _reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape
    factor = min(1.0, _LOOK_AT / max(height, width))
    shape = (max(8, round(width * factor)), max(8, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BOX))


def _without_border(small: NDArray[np.float32]) -> list[int]:
    low, high = np.percentile(small, (2, 99))
    box = [0, small.shape[0], 0, small.shape[1]]
    before: list[int] = []
    while box != before:
        before = box.copy()
        for side, axis in ((0, 1), (2, 0)):
            inside = small[box[0] : box[1], box[2] : box[3]]
            seen = np.flatnonzero(_spread(inside, axis) > _FLAT * (high - low))
            if len(seen) > 1:
                box[side : side + 2] = [box[side] + int(seen[0]), box[side] + int(seen[-1]) + 1]
    return box


def _spread(pixels: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return the contrast along an axis [rows or columns], the tails left out."""
    last = pixels.shape[axis] - 1
    low, high = int(_TAIL * last), int(np.ceil((1 - _TAIL) * last))
    ordered = np.partition(pixels, (low, high), axis=axis)
    return np.asarray(ordered.take(high, axis) - ordered.take(low, axis), dtype=np.float32)
