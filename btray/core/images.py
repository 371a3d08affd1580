"""Encoded bytes to pixels: the one decoder of import, training and serving."""

import io
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_BYTES: Final = 512 * 1024 * 1024
"""Larger files are refused before they are read."""
MAX_PIXELS: Final = 50_000_000
"""Larger images are refused before their pixels are decoded (decompression bombs)."""
MIN_SIDE: Final = 16
"""Smaller images carry no anatomy and are refused, in pixels."""
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
"""File names taken for images when a folder is searched."""
_FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
"""All that is read: Pillow knows more, and hands some of it (EPS) to an outside program."""
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


class ImageError(ValueError):
    """Bytes that are no usable slice; `code` is stable, the text is for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # all of it, or else it does not come out of a pickle
        self.code = code

    def __str__(self) -> str:
        return str(self.args[1])


def decode(data: bytes, at_least: int | None = None) -> NDArray[np.uint8]:
    """Return the grey pixels [height, width] of one encoded image, upright by its EXIF.

    Colour becomes luma (ITU-R 601), transparency is laid on black, 16-bit and
    floating-point pixels are scaled from their own minimum and maximum to 0..255.

    With `at_least`, a JPEG comes out at a half, a quarter or an eighth of its size, whichever
    is the smallest with no side below `at_least` pixels: its decoder averages in the frequency
    domain, in a fraction of the time. Other formats come out whole.

    Raises:
        ImageError: empty, unreadable, truncated, too small, too large or animated.

    """
    if not data:
        raise ImageError("empty", "the file is empty")
    with warnings.catch_warnings():
        # Pillow warns of damage, and of sizes beyond our own limit: we refuse or pass over.
        warnings.filterwarnings("ignore", module="PIL")
        image = _open(data)
        try:
            _check_header(image)
            _load(image, data, at_least)
            return _to_grey(_upright(image))
        except ImageError:
            raise
        except Exception as error:  # noqa: BLE001 - Pillow raises many types on bad bytes
            raise ImageError("unreadable", f"truncated or damaged: {error}") from None


def window(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Return values of any shape as 0..255: `low` and all below is 0, `high` and above 255.

    Where `high` is not above `low` there is nothing to tell apart, and all is 0.
    """
    if not high > low:
        return np.zeros(values.shape, dtype=np.uint8)
    share = np.clip((values - low) / (high - low), 0, 1)
    return np.round(share * 255).astype(np.uint8)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return grey pixels [height, width] as the bytes of a PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise ImageError("not_an_image", "not an image in a format btray reads") from None
    except Image.DecompressionBombError:
        raise ImageError("too_large", f"more pixels than the limit of {MAX_PIXELS:,}") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises many types on bad bytes
        raise ImageError("unreadable", f"cannot be read: {error}") from None


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too_large", f"{width} x {height} pixels, more than the limit of {MAX_PIXELS:,}"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError("too_small", f"{width} x {height} pixels; a side needs {MIN_SIDE}")
    if getattr(image, "is_animated", False):
        raise ImageError("several_frames", "several frames or pages; a slice is one image")


def _load(image: Image.Image, data: bytes, at_least: int | None) -> None:
    """Decode the pixels, of a JPEG in colour the luma alone and no more of them than needed."""
    image.draft("L", (at_least, at_least) if at_least else image.size)
    image.load()
    # Zeros that fill up a broken-off JPEG decode to grey; only the end marker is missing.
    if image.format == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ImageError("unreadable", "truncated or damaged: the end of the JPEG is missing")


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation asks; Pillow itself does so for TIFF."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - damaged EXIF beside sound pixels is passed over
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_grey(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):
        return stretch(np.asarray(image))
    if image.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
        image = image.convert("RGB")
    return np.array(image if image.mode == "L" else image.convert("L"), dtype=np.uint8)


def stretch(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return pixels of any shape, scaled from their own minimum and maximum to 0..255.

    Raises:
        ImageError: not all of them are finite numbers.

    """
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("not_finite", "pixels that are not finite numbers")
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros(values.shape, dtype=np.uint8)
    values -= low
    values /= high - low
    values *= 255
    return np.round(values, out=values).astype(np.uint8)
