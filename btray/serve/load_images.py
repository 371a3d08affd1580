"""Images for a load test: a person's own, or drawings of about the size and weight of a slice."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btray.errors import UserError


def read_images(paths: Sequence[Path]) -> list[bytes]:
    """Read files as they are.

    Raises:
        UserError: one cannot be read or is empty.

    """
    return [_read(path) for path in paths]


def draw_images(count: int = 8, size: int = 256, seed: int = 0) -> list[bytes]:
    """Draw heads of ellipses, encoded as PNG [size, size].

    They cost a server what slices cost it; what it answers for them means nothing.
    """
    generator = np.random.default_rng(seed)
    return [_encode(_head(generator, size)) for _ in range(count)]


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not data:
        raise UserError(f"{path}: empty; leave it out")
    return data


def _head(generator: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Draw skull, brain, ventricles and something bright in it [size, size]."""
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    tilt = generator.uniform(-0.3, 0.3)
    across, along = columns + tilt * rows, rows - tilt * columns
    image = 20 * generator.random((size, size))  # PNG of a scan does not shrink to nothing

    def ellipse(x: float, y: float, width: float, height: float, value: float) -> None:
        inside = ((across - x) / width) ** 2 + ((along - y) / height) ** 2 < 1
        image[inside] = value + 12 * generator.random(int(inside.sum()))

    ellipse(0, 0, 0.72, 0.88, 200)
    ellipse(0, 0, 0.65, 0.80, 90)
    ellipse(-0.15, -0.05, 0.08, 0.25, 40)
    ellipse(0.15, -0.05, 0.08, 0.25, 40)
    x, y = generator.uniform(-0.35, 0.35, 2)
    width, height = generator.uniform(0.05, 0.2, 2)
    ellipse(x, y, width, height, 170)
    return image.astype(np.uint8)


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()
