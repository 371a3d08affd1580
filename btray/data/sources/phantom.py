"""A procedural brain MRI phantom: synthetic slices of synthetic people.

Everything here is invented: schematic anatomy, schematic tumours, a schematic scanner. It
exists to try btray out without data. It has no medical meaning, and a model trained on it
knows nothing about people.

Patient (seed, index) alone determines its slices. Labels cycle over the patients; the
scanner, the plane, the sequences and the anatomy are drawn from streams that never see the
label, and a patient without a tumour is cut where one would have been.
"""

import io
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from btray.core.labels import CLASS_NAMES
from btray.data.sources.phantom_anatomy import Drawing, Head, Tissue, draw_tissues
from btray.data.sources.phantom_geometry import Floats, Mask, Points, Vector, length
from btray.data.sources.phantom_tumours import KINDS, PLANES, Tumour

SEQUENCES: Final = ("T1", "T1ce", "T2", "FLAIR")
_SEQUENCE_SHARES: Final = (0.04, 0.56, 0.13, 0.27)
_SLICES: Final = (3, 2, 4, 2, 6, 2)
"""Slices of a patient of each class, round by round."""
_STYLE, _ANATOMY, _TUMOUR, _SLICE = range(4)
"""Independent random streams of a patient."""
_RUN_LENGTH: Final = 3
"""zlib's strategy that is fastest and smallest on noisy images (Z_RLE)."""
_MATRIX: Final = (160, 176, 192, 208, 224, 240, 256)
_CENTRES: Final[dict[str, Vector]] = {
    "axial": (0, 0, 0),
    "coronal": (0, 0, -10),
    "sagittal": (0, 2, -12),
}
"""Middle of the field of view, mm."""
_AXES: Final = {
    "axial": ((1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "coronal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, -1), (1, 0, 0)),
}
"""Directions of columns, of rows and across the slice."""
_SIGNAL: Final = {
    Tissue.AIR: (0.0, 0.0, 0.0, 0.0),
    Tissue.BONE: (0.05, 0.05, 0.05, 0.05),
    Tissue.MARROW: (0.55, 0.62, 0.45, 0.40),
    Tissue.FAT: (0.80, 0.78, 0.66, 0.60),
    Tissue.MUSCLE: (0.36, 0.44, 0.22, 0.30),
    Tissue.CSF: (0.15, 0.15, 0.72, 0.12),
    Tissue.GREY: (0.48, 0.46, 0.46, 0.50),
    Tissue.WHITE: (0.57, 0.57, 0.37, 0.42),
    Tissue.DEEP_GREY: (0.50, 0.52, 0.43, 0.47),
    Tissue.VEIN: (0.22, 0.66, 0.14, 0.18),
    Tissue.ARTERY: (0.10, 0.55, 0.05, 0.06),
    Tissue.GLAND: (0.48, 0.72, 0.46, 0.48),
    Tissue.CHOROID: (0.36, 0.74, 0.66, 0.50),
    Tissue.HYPERINTENSITY: (0.48, 0.50, 0.72, 0.86),
    Tissue.MUCOSA: (0.36, 0.72, 0.78, 0.62),
    Tissue.NECROSIS: (0.11, 0.16, 0.98, 0.25),
    Tissue.GLIOMA: (0.27, 0.98, 0.80, 0.75),
    Tissue.OEDEMA: (0.31, 0.38, 0.84, 0.92),
    Tissue.MENINGIOMA: (0.24, 0.95, 0.86, 0.80),
    Tissue.ADENOMA: (0.25, 0.92, 0.86, 0.78),
    Tissue.CYST: (0.24, 0.26, 0.86, 0.36),
}
"""Signal of a tissue in each of SEQUENCES, as a fraction of full scale.

Schematic: tumours differ from grey matter in T1 and T2 more than they do in people, so that
a small network can learn them from a thousand slices.
"""


@dataclass(frozen=True)
class PhantomSlice:
    """One synthetic slice."""

    image: NDArray[np.uint8]
    """Grey pixels [height, width]."""
    label: str
    """Class name."""
    patient_id: str
    plane: str
    """Axial, coronal or sagittal."""
    sequence: str
    """T1, T1ce, T2 or FLAIR."""
    tumour: Mask
    """Pixels of the tumour, without oedema [height, width]; none without a tumour."""
    skull: Floats
    """Signed distance to the inner skull [height, width], mm, negative inside."""
    points: Points
    """Where the pixels lie in the standard head."""


@dataclass(frozen=True)
class Style:
    """How a patient is examined; drawn without knowing the label."""

    plane: str
    sequences: tuple[str, str]
    """Sequences its slices come from."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    pixel: float
    """Side of a pixel, mm."""
    shift: tuple[float, float]
    """Shift of the field of view along columns and rows, mm."""
    angles: Vector
    """Rotations about the columns, the rows and the axis across the slice, degrees."""
    blur: tuple[float, float]
    """Standard deviation of the point spread along rows and columns, mm."""
    noise: float
    """Standard deviation of each channel's noise, as a fraction of full scale."""
    bias: Floats
    """Coefficients of the bias field [2 axes, 2 orders]."""
    level: float
    """Factor from signal to full scale."""
    gamma: float
    """Exponent on the signal."""
    border: int
    """Width of black padding included in the matrix, pixels."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw a scanner, a protocol and a pose."""
        height = int(rng.choice(_MATRIX))
        width = height
        short = int(height * rng.uniform(0.78, 0.95)) // 2 * 2
        shape = rng.choice(["square", "tall", "wide"], p=[0.65, 0.2, 0.15])
        if shape != "square":
            height, width = (height, short) if shape == "tall" else (short, height)
        first, second = rng.choice(SEQUENCES, 2, p=_SEQUENCE_SHARES)
        return cls(
            plane=str(rng.choice(PLANES)),
            sequences=(str(first), str(second)),
            height=height,
            width=width,
            pixel=float(rng.uniform(205, 240)) / max(height, width),
            shift=(float(rng.normal(0, 4)), float(rng.normal(0, 4))),
            angles=_vector(np.clip(rng.normal(0, (5, 3, 6)), -14, 14)),
            blur=(float(rng.uniform(0.4, 1.0)), float(rng.uniform(0.4, 1.0))),
            noise=float(rng.uniform(0.008, 0.035)),
            bias=(rng.normal(0, 0.13, (2, 2))).astype(np.float32),
            level=float(rng.uniform(0.72, 1.1)),
            gamma=float(rng.uniform(0.8, 1.3)),
            border=int(rng.choice([0, 0, 0, 4, 10])),
        )

    def moved(self, rng: np.random.Generator) -> Self:
        """Return the style after the patient has moved a little between two series."""
        x, y = rng.normal(self.shift, 2.5)
        return replace(self, shift=(float(x), float(y)), angles=_vector(rng.normal(self.angles, 3)))


@dataclass(frozen=True)
class _Patient:
    """All that a patient's slices share."""

    style: Style
    head: Head
    site: Tumour
    """The tumour, or in a patient without one where it would be."""
    label: str


def phantom_plan(images: int) -> list[tuple[int, int]]:
    """Return (patient index, slices) for patients whose slices add up to `images`.

    The classes get equally many slices, in every whole round of patients and so, but for
    one round, in every prefix.
    """
    plan: list[tuple[int, int]] = []
    classes = len(CLASS_NAMES)
    turn = 0
    while images >= classes * _SLICES[turn % len(_SLICES)]:
        slices = _SLICES[turn % len(_SLICES)]
        plan += [(turn * classes + one, slices) for one in range(classes)]
        images -= classes * slices
        turn += 1
    share, extra = divmod(images, classes)
    rest = [(turn * classes + one, share + (one < extra)) for one in range(classes)]
    return plan + [(patient, slices) for patient, slices in rest if slices]


def phantom_patient(index: int, seed: int, slices: int) -> list[PhantomSlice]:
    """Return the first slices of patient `index` of the phantom of a seed."""
    patient = _draw_patient(index, seed)
    return [_render(patient, index, seed, number) for number in range(slices)]


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode grey pixels [height, width] as PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_type=_RUN_LENGTH)
    return buffer.getvalue()


def draw_style(index: int, seed: int) -> Style:
    """Draw how a patient is examined; the label has no part in it."""
    return Style.draw(np.random.default_rng([seed, index, _STYLE]))


def _draw_patient(index: int, seed: int) -> _Patient:
    style = draw_style(index, seed)
    label = CLASS_NAMES[index % len(CLASS_NAMES)]
    rng = np.random.default_rng([seed, index, _TUMOUR])
    kind = KINDS[label if label in KINDS else str(rng.choice(list(KINDS)))]
    head = Head.draw(np.random.default_rng([seed, index, _ANATOMY]))
    return _Patient(style, head, kind.draw(rng, style.plane), label)


def _render(patient: _Patient, index: int, seed: int, number: int) -> PhantomSlice:
    rng = np.random.default_rng([seed, index, _SLICE, number])
    style, sequence = patient.style, str(rng.choice(patient.style.sequences))
    # Multiples of the golden ratio spread any number of slices over the tumour.
    offset = 1.2 * ((0.5 + number * 0.618034) % 1 - 0.5) + float(rng.uniform(-0.05, 0.05))
    points = patient.head.to_anatomy(_locate(patient, style.moved(rng), offset))
    drawing, tumour = _draw_slice(patient, points)
    image = _acquire(drawing.labels, style, sequence, rng)
    return PhantomSlice(
        image,
        patient.label,
        f"phantom-{index:07d}",
        style.plane,
        sequence,
        tumour,
        drawing.cavity,
        points,
    )


def _draw_slice(patient: _Patient, points: Points) -> tuple[Drawing, Mask]:
    if patient.label not in KINDS:
        drawing = draw_tissues(patient.head, points, points)
        return drawing, np.zeros(drawing.labels.shape, np.bool_)
    drawing = draw_tissues(patient.head, points, patient.site.push(points))
    return drawing, patient.site.draw_into(drawing, points)


def _locate(patient: _Patient, style: Style, offset: float) -> Points:
    """Return where pixels lie in the scanner; the slice cuts the site at `offset` (-1..1)."""
    axes = np.array(_AXES[style.plane], np.float64)
    columns, rows, across = _rotation(style.angles) @ axes
    site = np.array(patient.head.to_scanner(patient.site.centre))
    reach = float(np.abs(across) @ patient.site.reach)
    middle = np.array(_CENTRES[style.plane]) + axes[0] * style.shift[0] + axes[1] * style.shift[1]
    middle = middle + across * (across @ (site - middle) + offset * reach)
    x = (np.arange(style.width) - (style.width - 1) / 2) * style.pixel
    y = (np.arange(style.height) - (style.height - 1) / 2) * style.pixel
    columns, rows, middle = (part.astype(np.float32) for part in (columns, rows, middle))
    x, y = x.astype(np.float32), y.astype(np.float32)
    return Points(
        *(middle[axis] + columns[axis] * x[None, :] + rows[axis] * y[:, None] for axis in range(3))
    )


def _rotation(degrees: Vector) -> NDArray[np.float64]:
    """Return the matrix [3, 3] that turns about each axis in turn."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _acquire(
    labels: NDArray[np.uint8], style: Style, sequence: str, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Turn tissues into the magnitude image a scanner would show, uint8."""
    signal = np.array(list(_SIGNAL.values()))[:, SEQUENCES.index(sequence)]
    signal = np.clip(signal, 0, 1) ** style.gamma * np.exp(rng.normal(0, 0.07, len(signal)))
    image = np.take(signal.astype(np.float32), labels)
    for axis, blur in enumerate(style.blur):
        image = gaussian_filter1d(image, blur / style.pixel, axis, mode="nearest", truncate=2.5)
    image *= _bias(style) * np.float32(style.level)
    real, imaginary = rng.standard_normal((2, *image.shape), np.float32) * np.float32(style.noise)
    # The magnitude of a complex signal has Rician noise.
    magnitude = length(image + real, imaginary)
    pixels = np.minimum(magnitude * 255 + 0.5, 255).astype(np.uint8)
    return _padded(pixels, style.border)


def _bias(style: Style) -> Floats:
    """Return the smooth receive sensitivity [height, width], about 1."""
    factors = []
    for (slope, curve), count in zip(style.bias, (style.height, style.width), strict=True):
        place = np.linspace(-1, 1, count, dtype=np.float32)
        factors.append(np.exp(slope * place + curve * (place * place - 0.3)))
    field: Floats = factors[0][:, None] * factors[1]
    return field


def _padded(pixels: NDArray[np.uint8], border: int) -> NDArray[np.uint8]:
    if border:
        pixels[:border] = pixels[-border:] = 0
        pixels[:, :border] = pixels[:, -border:] = 0
    return pixels


def _vector(values: NDArray[np.float64]) -> Vector:
    return (float(values[0]), float(values[1]), float(values[2]))
