"""Faults that scanners and archives put into slices, each at five severities.

Every corruption is a function of a slice [height, width], its severity 1..5 and a generator.
Lengths are fractions of the longer side and grey values fractions of the bright end of the
slice, so that a severity means the same for every size and brightness.
"""

import io
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft
from scipy.ndimage import gaussian_filter

from btray.core.preprocess import Pixels
from btray.errors import UserError

SEVERITIES: Final = (1, 2, 3, 4, 5)
"""1 is barely visible; at 5 a person can still read the slice."""

_NOISE: Final = (0.02, 0.04, 0.06, 0.09, 0.13)
"""Standard deviation, as a fraction of the bright end."""
_MOTION: Final = (0.002, 0.004, 0.006, 0.009, 0.013)
"""Amplitude, as a fraction of the longer side."""
_CYCLES: Final = (4.0, 12.0)
"""Least and most periods of the motion in one acquisition."""
_BIAS: Final = (0.15, 0.25, 0.4, 0.55, 0.75)
"""Standard deviation of the field's logarithm."""
_BIAS_ORDER: Final = 3
"""Degree of the field's polynomial."""
_BLUR: Final = (0.003, 0.0045, 0.0065, 0.0085, 0.011)
"""Standard deviation, as a fraction of the longer side."""
_GAMMA: Final = (1.15, 1.3, 1.45, 1.65, 1.9)
"""Exponent, or one over it."""
_RANGE: Final = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Share of the range of grey values that is left."""
_ROTATION: Final = (4.0, 8.0, 13.0, 20.0, 30.0)
"""Degrees, either way."""
_QUALITY: Final = (45, 25, 15, 10, 7)
"""As JPEG encoders count."""
_KEPT: Final = (0.7, 0.5, 0.38, 0.3, 0.23)
"""Share of k-space that is left along each axis."""

Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]
"""Of a slice, its severity 1..5 and a generator; returns a new slice of the same shape."""


def corrupt(image: Pixels, name: str, severity: int, seed: int = 0) -> Pixels:
    """Return a corrupted copy of a slice [height, width], of the same shape.

    What is drawn at random depends on the slice's own pixels, the name and the seed: neither on
    the order of the rows nor on the machine that has them, and it is the same at each severity.

    Args:
        image: The slice.
        name: One of `CORRUPTIONS`.
        severity: One of `SEVERITIES`.
        seed: Not negative.

    Raises:
        UserError: no such corruption or severity.

    """
    if name not in CORRUPTIONS:
        raise UserError(f"no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UserError(f"{name}: no severity {severity}; give 1 (least) to {len(SEVERITIES)}")
    own = zlib.crc32(image.tobytes())
    return CORRUPTIONS[name](
        image, severity, np.random.default_rng([seed, zlib.crc32(name.encode()), own])
    )


def jpeg(image: Pixels, quality: int) -> Pixels:
    """Return a slice as it comes out of a JPEG file of a quality 1..95."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def change_gamma(image: Pixels, exponent: float) -> Pixels:
    """Return a slice with its grey values, as 0..1, raised to an exponent."""
    table = np.round(255 * np.linspace(0, 1, 256) ** exponent).astype(np.uint8)
    changed: Pixels = table[image]
    return changed


def _noise(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Rician noise, as magnitude images have (Gudbjartsson & Patz 1995)."""
    real, imaginary = rng.standard_normal((2, *image.shape), np.float32)
    deviation = np.float32(_NOISE[severity - 1] * _bright(image))
    return _rounded(np.hypot(image + deviation * real, deviation * imaginary))


def _motion(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Ghosts of a head that moves to and fro while k-space is acquired line after line.

    A shift along the phase-encoding axis turns the phase of a line (Wood & Henkelman 1985).
    """
    axis = int(rng.integers(2))
    count = image.shape[axis]
    periods = rng.uniform(*_CYCLES) * np.arange(count) / count + rng.random()
    shift = _MOTION[severity - 1] * max(image.shape) * np.sin(2 * np.pi * periods)
    turned = np.exp(-2j * np.pi * np.sort(fft.fftfreq(count)) * shift).astype(np.complex64)
    phases = np.expand_dims(fft.ifftshift(turned), 1 - axis)
    lines = fft.fft(image.astype(np.float32), axis=axis) * phases
    return _rounded(np.abs(fft.ifft(lines, axis=axis)))


def _bias_field(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Uneven sensitivity: the exponential of a polynomial (Van Leemput et al. 1999).

    The mean of the grey values stays; what comes out brighter than white is white.
    """
    coefficients = np.triu(rng.uniform(-1, 1, (_BIAS_ORDER + 1,) * 2)[:, ::-1])[:, ::-1]
    rows, columns = (np.linspace(-1, 1, side) for side in image.shape)
    field = np.polynomial.polynomial.polygrid2d(rows, columns, coefficients)
    field *= _BIAS[severity - 1] / field.std()
    uneven = image * np.exp(field - field.mean()).astype(np.float32)
    return _rounded(uneven * (image.mean() / max(1.0, uneven.mean())))


def _blur(image: Pixels, severity: int, _: np.random.Generator) -> Pixels:
    deviation = _BLUR[severity - 1] * max(image.shape)
    return _rounded(gaussian_filter(image.astype(np.float32), deviation))


def _contrast(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Too dark or too bright a gamma, and a loss of range around the mean."""
    sign = rng.choice((-1, 1))
    changed = change_gamma(image, _GAMMA[severity - 1] ** sign).astype(np.float32)
    mean = changed.mean()
    return _rounded(mean + _RANGE[severity - 1] * (changed - mean))


def _rotation(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """About the centre; the corners that come in are as bright as the frame was."""
    frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    degrees = _ROTATION[severity - 1] * rng.choice((-1, 1))
    turned = Image.fromarray(image).rotate(
        degrees, Image.Resampling.BILINEAR, fillcolor=int(np.median(frame))
    )
    return np.array(turned)


def _jpeg(image: Pixels, severity: int, _: np.random.Generator) -> Pixels:
    return jpeg(image, _QUALITY[severity - 1])


def _low_resolution(image: Pixels, severity: int, _: np.random.Generator) -> Pixels:
    """Leave the outer part of k-space, as if it had not been acquired, at 0."""
    spectrum = fft.rfft2(image.astype(np.float32))
    limit = _KEPT[severity - 1] / 2
    spectrum[np.abs(fft.fftfreq(image.shape[0])) > limit] = 0
    spectrum[:, fft.rfftfreq(image.shape[1]) > limit] = 0
    return _rounded(np.abs(fft.irfft2(spectrum, image.shape)))


def _bright(image: NDArray[np.uint8] | NDArray[np.float32]) -> float:
    return float(np.percentile(image, 99))


def _rounded(values: NDArray[np.floating]) -> Pixels:
    return np.round(values.clip(0, 255)).astype(np.uint8)


CORRUPTIONS: Final[dict[str, Corruption]] = {
    "noise": _noise,
    "motion": _motion,
    "bias_field": _bias_field,
    "blur": _blur,
    "contrast": _contrast,
    "rotation": _rotation,
    "jpeg": _jpeg,
    "low_resolution": _low_resolution,
}
"""Every corruption by its name."""
