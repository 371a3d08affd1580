"""What the audit measures of one image: its style with the head masked out, and its faults.

The tasks that measure load this module alone: neither Ray Data nor scikit-learn.
"""

import io
import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from btray.core.head import Box, foreground, head_box
from btray.core.images import ImageError, decode
from btray.data.head import frame, thumbnail
from btray.errors import UserError

SIDE: Final = 32
"""Side of the small picture of the head that labels are predicted from, in pixels."""
_FRAME: Final = 3
"""Width of the outermost frame, in pixels."""
_GREYS: Final = (0, 1, 3, 6, 12, 24, 48, 256)
"""Edges of the bins of background grey values."""
_BLANK: Final = 4.0
"""Standard deviation of grey values below which an image shows nothing."""
_BRIGHT: Final = 128
"""Grey value from which a background is bright."""
_SMALL_HEAD: Final = 0.3
"""Share of the image that the head's box must fill for its border not to be oversized."""

_EXAMINED: Final = pa.schema(
    [
        ("source", pa.string()),
        ("thumbnail", pa.binary()),
        ("frame", pa.binary()),
        ("content", pa.binary()),
        ("style", pa.list_(pa.float32())),
        ("faults", pa.list_(pa.string())),
    ]
)
STYLE: Final = (
    "height",
    "width",
    "aspect ratio",
    "colour",
    "compression",
    "frame brightness",
    "frame contrast",
    "margin top",
    "margin bottom",
    "margin left",
    "margin right",
    "background brightness",
    "background contrast",
    "background sharpness",
    *(f"background greys {low}-{high - 1}" for low, high in itertools.pairwise(_GREYS)),
)
"""Names of the features of `style`, in order."""


def style(data: bytes, pixels: NDArray[np.uint8], box: Box) -> NDArray[np.float32]:
    """Measure an encoded image, decoded to [height, width], by all but its head: [STYLE]."""
    height, width = pixels.shape
    head = foreground(pixels)
    rows, columns = box
    with Image.open(io.BytesIO(data)) as header:
        colour = header.mode not in ("L", "1", "I", "I;16", "F")
        tables = getattr(header, "quantization", None) or {}
    frame = _frame(pixels)
    outside = pixels[~head]
    background = outside if outside.size else np.zeros(1, np.uint8)
    histogram = np.histogram(background, bins=_GREYS)[0] / background.size
    return np.array(
        [
            height,
            width,
            width / height,
            colour,
            float(np.mean(tables[0])) if 0 in tables else 0.0,
            frame.mean(),
            frame.std(),
            rows.start / height,
            1 - rows.stop / height,
            columns.start / width,
            1 - columns.stop / width,
            background.mean(),
            background.std(),
            _sharpness(pixels, head),
            *histogram,
        ],
        dtype=np.float32,
    )


def faults(pixels: NDArray[np.uint8], box: Box) -> list[str]:
    """Name what is wrong with an image [height, width]: blank, inverted, oversized border."""
    if pixels.std() < _BLANK:
        return ["blank"]
    found = []
    centre = pixels[box]
    frame = float(np.median(_frame(pixels)))
    if frame >= _BRIGHT and frame > np.median(centre):
        found.append("inverted")
    if centre.size < _SMALL_HEAD * pixels.size:
        found.append("oversized border")
    return found


def content(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Return the head of an image [height, width] as [SIDE, SIDE], uint8."""
    head = np.ascontiguousarray(pixels[box])
    return np.asarray(Image.fromarray(head).resize((SIDE, SIDE), Image.Resampling.BOX))


@dataclass(frozen=True)
class Examined:
    """What is measured of one image."""

    style: NDArray[np.float32]
    """As `style` returns it."""
    faults: list[str]
    """As `faults` returns them."""
    content: NDArray[np.uint8]
    """As `content` returns it."""
    thumbnail: NDArray[np.uint8]
    """The head, by which near duplicates are found."""
    frame: NDArray[np.uint8]
    """The whole image, by which they are found too."""


def examine(data: bytes) -> Examined:
    """Measure an encoded image; raises ImageError."""
    pixels = decode(data)
    box = head_box(pixels)
    return Examined(
        style(data, pixels, box),
        faults(pixels, box),
        content(pixels, box),
        thumbnail(pixels, box),
        frame(pixels),
    )


def examine_table(table: pa.Table) -> pa.Table:
    """Examine a table of `image` and `source`; returns one of _EXAMINED."""
    rows = []
    for data, source in zip(table["image"].to_pylist(), table["source"].to_pylist(), strict=True):
        try:
            found = examine(data)
        except ImageError as error:
            raise UserError(f"row {source}: {error}") from None
        rows.append(
            {
                "source": source,
                "thumbnail": found.thumbnail.tobytes(),
                "frame": found.frame.tobytes(),
                "content": found.content.tobytes(),
                "style": found.style.tolist(),
                "faults": found.faults,
            }
        )
    return pa.Table.from_pylist(rows, schema=_EXAMINED)


def _frame(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    sides = (pixels[:_FRAME], pixels[-_FRAME:], pixels[:, :_FRAME], pixels[:, -_FRAME:])
    return np.concatenate([side.ravel() for side in sides])


def _sharpness(pixels: NDArray[np.uint8], head: NDArray[np.bool_]) -> float:
    """Return the mean strength of edges outside the head, away from its own edge."""
    # A blurred mask is 0 where its window holds nothing of it: a dilation, but faster.
    blurred = Image.fromarray(head.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(4))
    outside = np.asarray(blurred) == 0
    if not outside.any():
        return 0.0
    edges = np.abs(ndimage.laplace(pixels.astype(np.float32)))
    return float(edges[outside].mean())
