"""Images that are no brain MRI slice, to see whether a model says so.

All come from files inside installed packages, or from a seeded generator; none is fetched.
"""

from collections.abc import Callable, Iterator
from importlib import resources
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from btray.core.dicom import read_frames
from btray.core.images import decode, window

Pixels = NDArray[np.uint8]

_PHOTOGRAPHS: Final = (
    *(f"sklearn/datasets/images/{name}" for name in ("china.jpg", "flower.jpg")),
    *(
        f"skimage/data/{name}"
        for name in (
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "hubble_deep_field.jpg",
            "moon.png",
            "motorcycle_left.png",
            "rocket.jpg",
        )
    ),
)
_ANATOMY: Final = (
    *(f"skimage/data/{name}" for name in ("ihc.png", "microaneurysms.png", "retina.jpg")),
    *(
        f"pydicom/data/test_files/{name}"
        for name in (
            "CT_small.dcm",  # spine
            "J2K_pixelrep_mismatch.dcm",  # CT of the head
            "JPEG2000.dcm",  # bone scan
            "MR_small.dcm",  # a detail of 64 pixels
            "examples_jpeg2k.dcm",  # ultrasound of the kidney
            "examples_overlay.dcm",  # MR of the liver
            "examples_palette.dcm",  # ultrasound
            "examples_ybr_color.dcm",  # echocardiogram
        )
    ),
)
_TEXTS: Final = (
    *(f"skimage/data/{name}" for name in ("page.png", "text.png")),
    "pydicom/data/test_files/GDCMJ2K_TextGBR.dcm",
)
_WORDS: Final = (
    "the of a no with is are seen slice contrast lesion left right frontal oedema mass effect "
    "ventricles normal T1 T2 FLAIR mm year male female report signed 2024 scanner findings"
)


class Strange(NamedTuple):
    """An image that is no brain MRI slice."""

    kind: str
    """`photograph`, `anatomy` (other than brain MRI), `text` or `noise`."""
    name: str
    """Of the file, or of how it was made."""
    pixels: Pixels
    """Grey [height, width]."""


def strangers(seed: int = 0) -> Iterator[Strange]:
    """Yield some 140 images of four kinds, the same ones for the same seed and packages.

    Of every file: whole, turned or mirrored, and a part of it. A file that the installed version
    of its package lacks is passed over.
    """
    rng = np.random.default_rng(seed)
    files = {"photograph": _PHOTOGRAPHS, "anatomy": _ANATOMY, "text": _TEXTS}
    for kind, paths in files.items():
        for path in paths:
            pixels = _read(path)
            if pixels is not None:
                for name, view in _views(pixels, rng):
                    yield Strange(kind, f"{path.rpartition('/')[2]} {name}", view)
    for number in range(24):
        yield Strange("text", f"rendered {number}", _text(rng))
    for name, make in _NOISES.items():
        for number in range(4):
            side = int(rng.integers(128, 513))
            yield Strange("noise", f"{name} {number}", make(side, rng))


def _read(path: str) -> Pixels | None:
    """Return the grey pixels of a file of an installed package, its first frame."""
    package, _, inside = path.partition("/")
    file = resources.files(package) / inside
    if not file.is_file():
        return None
    data = file.read_bytes()
    return read_frames(data)[0] if path.endswith(".dcm") else decode(data)


def _views(pixels: Pixels, rng: np.random.Generator) -> Iterator[tuple[str, Pixels]]:
    yield "whole", pixels
    turns, mirrored = int(rng.integers(1, 4)), bool(rng.integers(2))
    yield "turned", np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, turns))
    height, width = (max(16, round(side * rng.uniform(0.4, 0.8))) for side in pixels.shape)
    top = int(rng.integers(0, pixels.shape[0] - height + 1))
    left = int(rng.integers(0, pixels.shape[1] - width + 1))
    yield "part", pixels[top : top + height, left : left + width].copy()


def _text(rng: np.random.Generator) -> Pixels:
    """Render lines of words, dark on light or light on dark."""
    height, width = (int(side) for side in rng.integers(160, 481, 2))
    size = int(rng.integers(12, 49))
    light, dark = int(rng.integers(180, 256)), int(rng.integers(0, 60))
    paper, ink = (light, dark) if rng.integers(2) else (dark, light)
    page = Image.new("L", (width, height), paper)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for top in range(8, height - size, round(1.4 * size)):
        draw.text((8, top), " ".join(rng.choice(_WORDS.split(), 12)), fill=ink, font=font)
    return np.asarray(page)


def _stretched(values: NDArray[np.float64]) -> Pixels:
    return window(values, float(values.min()), float(values.max()))


def _uniform(side: int, rng: np.random.Generator) -> Pixels:
    return rng.integers(0, 256, (side, side), dtype=np.uint8)


def _gaussian(side: int, rng: np.random.Generator) -> Pixels:
    mean, deviation = rng.uniform(40, 200), rng.uniform(5, 60)
    return window(rng.normal(mean, deviation, (side, side)), 0, 255)


def _smooth(side: int, rng: np.random.Generator) -> Pixels:
    return _stretched(gaussian_filter(rng.normal(size=(side, side)), rng.uniform(2, side / 8)))


def _one_over_f(side: int, rng: np.random.Generator) -> Pixels:
    """Noise with the spectrum of natural images: amplitude falls with frequency."""
    rows, columns = np.meshgrid(*[np.fft.fftfreq(side)] * 2)
    frequency = np.maximum(np.hypot(rows, columns), 1 / side)
    return _stretched(np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) / frequency).real)


def _in_a_disc(side: int, rng: np.random.Generator) -> Pixels:
    """Smooth noise where a head would be, black around it."""
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    disc = np.hypot(rows / rng.uniform(0.7, 0.95), columns / rng.uniform(0.6, 0.9)) < 1
    return np.where(disc, _smooth(side, rng), 0).astype(np.uint8)


def _constant(side: int, rng: np.random.Generator) -> Pixels:
    return np.full((side, side), rng.integers(0, 256), dtype=np.uint8)


def _gradient(side: int, rng: np.random.Generator) -> Pixels:
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0:side, 0:side]
    return _stretched(rows * np.sin(angle) + columns * np.cos(angle))


def _checks(side: int, rng: np.random.Generator) -> Pixels:
    rows, columns = np.indices((side, side)) // int(rng.integers(4, side // 4))
    return ((rows + columns) % 2 * 255).astype(np.uint8)


_NOISES: Final[dict[str, Callable[[int, np.random.Generator], Pixels]]] = {
    "uniform": _uniform,
    "Gaussian": _gaussian,
    "smooth": _smooth,
    "1/f": _one_over_f,
    "in a disc": _in_a_disc,
    "constant": _constant,
    "gradient": _gradient,
    "checks": _checks,
}
