"""Encoded bytes to pixels: the one decoder of import, training and serving."""

import io
import warnings
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

MAX_PIXELS: Final = 50_000_000
"""Larger images are refused before their pixels are decoded (decompression bombs)."""
MIN_SIDE: Final = 16
"""Smaller images carry no anatomy and are refused, in pixels."""
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
"""File names taken for images when a folder is searched."""


class ImageError(ValueError):
    """Bytes that are no usable slice; `code` is stable, the text is for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def decode(data: bytes) -> NDArray[np.uint8]:
    """Return the grey pixels [height, width] of one encoded image.

    Colour becomes luma (ITU-R 601), transparency is laid on black, 16-bit and
    floating-point pixels are scaled from their own minimum and maximum to 0..255.

    Raises:
        ImageError: empty, unreadable, truncated, too small, too large or animated.

    """
    if not data:
        raise ImageError("empty", "the file is empty")
    header = _open(data)
    _check_header(header)
    if header.format == "JPEG" and header.mode in ("L", "RGB"):
        return _decode_with_torchvision(data, decode_jpeg)
    if header.format == "PNG" and header.mode in ("L", "RGB"):
        return _decode_with_torchvision(data, decode_png)
    return _decode_with_pillow(header)


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our own pixel limit is tighter than the one Pillow warns about.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ImageError("not_an_image", "not an image in a format btray reads") from None
    except Image.DecompressionBombError:
        raise ImageError("too_large", f"more pixels than the limit of {MAX_PIXELS:,}") from None
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise many types on bad bytes
        raise ImageError("unreadable", f"cannot be read: {error}") from None


def _check_header(header: Image.Image) -> None:
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too_large", f"{width} x {height} pixels, more than the limit of {MAX_PIXELS:,}"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError("too_small", f"{width} x {height} pixels; a side needs {MIN_SIDE}")
    frames = getattr(header, "n_frames", 1)
    if frames > 1:
        raise ImageError("several_frames", f"{frames} frames; a slice is one image")


def _decode_with_torchvision(data: bytes, decoder: object) -> NDArray[np.uint8]:
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        pixels = decoder(encoded, mode=ImageReadMode.GRAY)  # type: ignore[operator]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ImageError("unreadable", f"truncated or damaged: {reason}") from None
    return np.ascontiguousarray(pixels[0].numpy())


def _decode_with_pillow(image: Image.Image) -> NDArray[np.uint8]:
    try:
        image.load()
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise many types on bad bytes
        raise ImageError("unreadable", f"truncated or damaged: {error}") from None
    if image.mode.startswith(("I", "F")):
        return _stretch(np.asarray(image))
    if image.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
        image = image.convert("RGB")
    return np.array(image.convert("L"), dtype=np.uint8)


def _stretch(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("not_finite", "pixels that are not finite numbers")
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.round((values - low) / (high - low) * 255).astype(np.uint8)
