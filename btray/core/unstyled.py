"""Slices without the signs of style that give their labels away, and in other styles.

Archives differ in size, border, grey values and compression, and some classes come from one
archive only (Zech et al. 2018 on confounding by source). What a network scores without these
signs it owes to the anatomy; what it scores without the anatomy it owes to them.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from btray.config import ImageConfig
from btray.core.corruptions import change_gamma, jpeg
from btray.core.head import foreground, head_box
from btray.core.preprocess import Pixels, resize

REFERENCE: Final = (0, 26, 40, 51, 58, 65, 70, 74, 78, 82, 86, 90, 96, 105, 121, 147, 247)
"""Grey values of a head at evenly spaced quantiles, the least and the largest among them: the
mean of the quantiles of a few hundred slices of every class."""
_SIZE: Final = ImageConfig(size=224)
_QUALITY: Final = 90
_FLOOR: Final = 5
"""Percentile of the grey values taken for the brightness of the background."""

Quantiles = NDArray[np.float64] | tuple[float, ...]
"""Grey values 0..255 at evenly spaced quantiles, from the least to the largest."""


def without_style(image: Pixels, reference_histogram: Quantiles = REFERENCE) -> Pixels:
    """Return a slice [height, width] as if all came from one archive: uint8 [224, 224].

    Letterboxed to one size, black outside the head, the head's grey values matched to one
    distribution (Gonzalez & Woods, histogram specification), and once through a JPEG.
    """
    square = resize(image, _SIZE)
    head = _head(square)
    matched = match_histogram(square, head, reference_histogram)
    return jpeg(np.where(head, matched, np.uint8(0)), _QUALITY)


def match_histogram(image: Pixels, where: NDArray[np.bool_], reference: Quantiles) -> Pixels:
    """Return a slice whose grey values within a mask [height, width] follow a distribution.

    As `skimage.exposure.match_histograms` on the pixels of the mask; the same table of grey
    values serves those outside.
    """
    counts = np.bincount(image[where], minlength=256)
    shares = np.cumsum(counts) / max(1, counts.sum())
    grey = np.interp(shares, np.linspace(0, 1, len(reference)), reference)
    matched: Pixels = np.round(grey).astype(np.uint8)[image]
    return matched


def brain_masked(image: Pixels) -> Pixels:
    """Return a slice [height, width] with its head blacked out: only style is left."""
    return np.where(_head(image), np.uint8(0), image)


def border_removed(image: Pixels) -> Pixels:
    """Return the head alone [head height, head width], black around it within its box."""
    box = head_box(image)
    return np.where(_head(image), image, np.uint8(0))[box]


def _head(image: Pixels) -> NDArray[np.bool_]:
    """Return where the head is; a background of any brightness is told from it."""
    floor = np.uint8(np.percentile(image, _FLOOR))
    return foreground(np.maximum(image, floor) - floor)


def _inverted_border(image: Pixels) -> Pixels:
    return np.where(_head(image), image, 255 - image)


def _half_size(image: Pixels) -> Pixels:
    return np.array(ImageOps.scale(Image.fromarray(image), 0.5, Image.Resampling.BOX))


def _framed(image: Pixels) -> Pixels:
    return np.pad(image, max(image.shape) // 5)


def _equalised(image: Pixels) -> Pixels:
    return np.array(ImageOps.equalize(Image.fromarray(image)))


STYLES: Final[dict[str, Callable[[Pixels], Pixels]]] = {
    "inverted border": _inverted_border,
    "gamma bright": lambda image: change_gamma(image, 0.6),
    "gamma dark": lambda image: change_gamma(image, 1.6),
    "histogram equalised": _equalised,
    "JPEG quality 50": lambda image: jpeg(image, 50),
    "half size": _half_size,
    "wide black frame": _framed,
}
"""Changes that leave the anatomy as it is, by their names; some change the size."""
