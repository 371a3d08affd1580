"""What the import measures of one encoded image: hashes, size, thumbnail; no Ray."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btray.core.images import decode
from btray.core.seen import phash
from btray.data.head import frame, thumbnail


@dataclass(frozen=True)
class Measured:
    """One decodable image."""

    sha256: str
    """Of the encoded bytes."""
    pixel_sha256: str
    """Of height, width (little-endian uint32) and the decoded grey pixels."""
    phash: str
    """64-bit perceptual hash, 16 hexadecimal digits."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    mode: str
    """Colour mode as stored, in Pillow's terms: L, RGB …"""
    thumbnail: bytes
    """The head, THUMBNAIL x THUMBNAIL, uint8; see `btray.data.head.thumbnail`."""
    frame: bytes
    """The whole image, FRAME x FRAME, uint8; see `btray.data.head.frame`."""


def measure(data: bytes) -> Measured:
    """Decode an image and measure it.

    Raises:
        ImageError: not a usable slice.

    """
    pixels = decode(data)
    with Image.open(io.BytesIO(data)) as header:
        mode = header.mode
    height, width = pixels.shape
    return Measured(
        sha256=hashlib.sha256(data).hexdigest(),
        pixel_sha256=pixel_sha256(pixels),
        phash=phash(pixels),
        height=height,
        width=width,
        mode=mode,
        thumbnail=thumbnail(pixels).tobytes(),
        frame=frame(pixels).tobytes(),
    )


def pixel_sha256(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an image's height, width and grey pixels [height, width]."""
    shape = np.array(pixels.shape, dtype="<u4").tobytes()
    return hashlib.sha256(shape + pixels.tobytes()).hexdigest()
