"""Synthetic tumours: where each kind sits and how it looks. Schematic, no medical meaning."""

from dataclasses import dataclass
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from btray.data.sources.phantom_anatomy import SELLA, Drawing, Tissue, cranial_cavity
from btray.data.sources.phantom_geometry import Mask, Points, Vector, Waves, blend, length

Place = NDArray[np.float64]
"""A point or vector [3], mm."""

PLANES: Final = ("axial", "coronal", "sagittal")

_THROUGH: Final = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Axis across each plane."""
_DEPTHS: Final = {"axial": (-4.0, 48.0), "coronal": (-58.0, 52.0), "sagittal": (7.0, 42.0)}
"""Where tumours of the brain and its coverings are cut across each plane, mm."""


class Tumour(Protocol):
    """A tumour in the standard head."""

    @property
    def centre(self) -> Vector:
        """Its middle, mm."""
        ...

    @property
    def reach(self) -> Vector:
        """Half its extent along x, y and z, mm."""
        ...

    def push(self, points: Points) -> Points:
        """Return where the tissue came from that the tumour has pushed to the points."""
        ...

    def draw_into(self, drawing: Drawing, points: Points) -> Mask:
        """Draw it and return the pixels of the tumour itself, without what surrounds it."""
        ...


@dataclass(frozen=True)
class Glioma:
    """Inside the brain: irregular enhancing ring, necrotic core, oedema in white matter."""

    centre: Vector
    radius: float
    """Mean radius, mm."""
    irregularity: float
    """Standard deviation of the radius, as a fraction of it."""
    ring: float
    """Thickness of the enhancing ring, as a fraction of the radius."""
    oedema: float
    """How far oedema reaches beyond the ring, mm."""
    shape: Waves

    @classmethod
    def draw(cls, rng: np.random.Generator, plane: str) -> Self:
        """Draw one that slices of a plane can meet."""
        start, towards, way = _ray(rng, plane)
        radius = min(float(rng.uniform(16, 28)), 0.45 * way)
        deepest = max(way - 1.05 * radius - 5, 0.3 * way)
        along = float(rng.uniform(0.3 * way, deepest))
        return cls(
            centre=_vector(start + along * towards),
            radius=radius,
            irregularity=float(rng.uniform(0.13, 0.24)),
            ring=float(rng.uniform(0.2, 0.45)),
            oedema=float(rng.uniform(8, 20)),
            shape=Waves.draw(rng, 1.4 * radius, 8),
        )

    @property
    def reach(self) -> Vector:
        """Half its extent along x, y and z, mm."""
        return (self.radius, self.radius, self.radius)

    def push(self, points: Points) -> Points:
        """Return where the tissue came from that the tumour has pushed to the points."""
        return _pushed(points, self.centre, self.radius, 0.45)

    def draw_into(self, drawing: Drawing, points: Points) -> Mask:
        """Draw ring, core and oedema; return ring and core."""
        labels, inside = drawing.labels, drawing.cavity < -2
        rough = self.shape(points)
        surface = points.about(self.centre) - self.radius * (1 + self.irregularity * rough)
        spread = surface - self.oedema * np.clip(0.75 - 0.55 * rough, 0, 2)
        white = np.isin(labels, (Tissue.WHITE, Tissue.HYPERINTENSITY, Tissue.DEEP_GREY))
        near = (surface < 2) & (labels != Tissue.CSF)
        labels[drawing.brain & ((white & (spread < 0)) | near)] = Tissue.OEDEMA
        whole = inside & (surface < 0)
        labels[whole] = Tissue.GLIOMA
        thickness = self.radius * self.ring * np.clip(1 + 0.35 * rough, 0.4, 2)
        labels[whole & (surface < -thickness)] = Tissue.NECROSIS
        return whole


@dataclass(frozen=True)
class Meningioma:
    """On the dura: smooth, homogeneous, broad-based against the skull, with a dural tail."""

    centre: Vector
    radius: float
    """Mean radius, mm."""
    inward: Vector
    """Unit vector from the skull into the brain."""
    flatness: float
    """Height over width."""
    tail: float
    """Reach of the dural tail, in radii."""
    oedema: float
    """How far oedema reaches, mm; 0 for none."""
    shape: Waves

    @classmethod
    def draw(cls, rng: np.random.Generator, plane: str) -> Self:
        """Draw one that slices of a plane can meet."""
        start, towards, way = _ray(rng, plane)
        base = start + way * towards
        inward = -_gradient(base)
        radius, flatness = float(rng.uniform(17, 27)), float(rng.uniform(0.75, 1.05))
        sunk = radius * flatness * float(rng.uniform(0.4, 0.62))
        return cls(
            centre=_vector(base + inward * sunk),
            radius=radius,
            inward=_vector(inward),
            flatness=flatness,
            tail=float(rng.uniform(1.3, 1.8)),
            oedema=max(0.0, float(rng.uniform(-12, 9))),
            shape=Waves.draw(rng, 2.2 * radius, 6),
        )

    @property
    def reach(self) -> Vector:
        """Half the extent along x, y and z in which slices show it on the skull, mm."""
        u, v, w = (self.radius * (1 - 0.85 * abs(part)) for part in self.inward)
        return (u, v, w)

    def push(self, points: Points) -> Points:
        """Return where the tissue came from that the tumour has pushed to the points."""
        return _pushed(points, self.centre, self.radius, 0.55)

    def draw_into(self, drawing: Drawing, points: Points) -> Mask:
        """Draw tumour, cleft, tail and oedema; return the tumour."""
        labels, cavity = drawing.labels, drawing.cavity
        distance = points.about(self.centre)
        (x, y, z), (u, v, w) = self.centre, self.inward
        height = (points.x - x) * u + (points.y - y) * v + (points.z - z) * w
        sideways = np.sqrt(np.maximum(distance**2 - height**2, 0))
        shaped = length(height * (1 / self.flatness), sideways)
        surface = shaped - self.radius * (1 + 0.05 * self.shape(points))
        white = np.isin(labels, (Tissue.WHITE, Tissue.HYPERINTENSITY))
        labels[white & drawing.brain & (surface < self.oedema)] = Tissue.OEDEMA
        labels[(cavity < 0) & (surface < 1.3)] = Tissue.CSF
        thickness = 2.8 * (1 - sideways * (1 / (self.tail * self.radius)))
        labels[(cavity < 0.4) & (cavity > -thickness) & (thickness > 0)] = Tissue.MENINGIOMA
        whole: Mask = (cavity < 0) & (surface < 0)
        labels[whole] = Tissue.MENINGIOMA
        return whole


@dataclass(frozen=True)
class Adenoma:
    """In the sella, on the midline: widens it and may grow up through a waist."""

    centre: Vector
    radius: float
    """Half width in the sella, mm."""
    dome: float
    """Radius of the part above the sella, as a fraction of the other."""
    rise: float
    """Height of that part's centre over the other's, mm."""
    cyst: float
    """Radius of a cyst inside, as a fraction of the radius; 0 for none."""
    shape: Waves

    @classmethod
    def draw(cls, rng: np.random.Generator, plane: str) -> Self:  # noqa: ARG003
        """Draw one; every plane meets the sella."""
        radius = float(rng.uniform(12, 17))
        dome = float(rng.uniform(0.7, 1.15))
        return cls(
            centre=(SELLA[0] + float(rng.normal(0, 1.2)), SELLA[1], SELLA[2] + 0.15 * radius),
            radius=radius,
            dome=dome,
            rise=float(rng.uniform(0.5, 0.8)) * radius * (1 + dome),
            cyst=max(0.0, float(rng.uniform(-0.9, 0.55))),
            shape=Waves.draw(rng, 2.0 * radius, 6),
        )

    @property
    def reach(self) -> Vector:
        """Half its extent along x, y and z, mm; the part in the sella alone."""
        return (0.8 * self.radius, 0.8 * self.radius, 0.9 * self.radius)

    def push(self, points: Points) -> Points:
        """Return where the tissue came from that the tumour has pushed to the points."""
        x, y, z = self.centre
        return _pushed(points, (x, y, z + self.rise), self.dome * self.radius, 0.4)

    def draw_into(self, drawing: Drawing, points: Points) -> Mask:
        """Draw both parts and the cyst; return the tumour."""
        x, y, z = self.centre
        lower = points.about(self.centre, (1.05, 0.92, 0.95)) - self.radius
        upper = points.about((x, y, z + self.rise)) - self.dome * self.radius
        surface = blend(lower, upper, 1.5) - 0.06 * self.radius * self.shape(points)
        whole: Mask = (surface < 0) & (drawing.labels != Tissue.VEIN)
        edge = (surface < 1.2) & (drawing.cavity < 0)
        drawing.labels[edge] = Tissue.CSF
        drawing.labels[whole] = Tissue.ADENOMA
        if self.cyst:
            hollow = points.about((x, y, z + 0.6 * self.rise)) < self.cyst * self.radius
            drawing.labels[whole & hollow] = Tissue.CYST
        return whole


KINDS: Final[dict[str, type[Glioma] | type[Meningioma] | type[Adenoma]]] = {
    "glioma": Glioma,
    "meningioma": Meningioma,
    "pituitary": Adenoma,
}
"""Kind of tumour by class name."""


def _ray(rng: np.random.Generator, plane: str) -> tuple[Place, Place, float]:
    """Draw a start inside the skull, a direction in the plane and the way to the skull, mm."""
    across = _THROUGH[plane]
    first, second = (axis for axis in range(3) if axis != across)
    start = np.zeros(3)
    start[across] = rng.uniform(*_DEPTHS[plane])
    if plane == "sagittal":
        start[0] *= rng.choice((-1, 1))
    # Above the skull base, except in axial slices, which lie above it as a whole.
    angle = rng.uniform(0, 2 * np.pi) if plane == "axial" else rng.uniform(-0.25, np.pi + 0.1)
    towards = np.zeros(3)
    towards[first], towards[second] = np.cos(angle), np.sin(angle)
    steps = np.arange(0, 110, 0.5)
    outside = _cavity(start + steps[:, None] * towards) >= 0
    return start, towards, float(steps[np.argmax(outside)])


def _cavity(places: Place) -> Place:
    """Return the signed distance of places [n, 3] to the inner skull [n], mm."""
    x, y, z = places.astype(np.float32).T
    return cranial_cavity(Points(x, y, z)).astype(np.float64)


def _gradient(place: Place) -> Place:
    """Return the unit vector out of the skull at a place [3]."""
    steps = np.concatenate([np.eye(3), -np.eye(3)]) * 2
    values = _cavity(place + steps)
    slope: Place = values[:3] - values[3:]
    return slope / np.linalg.norm(slope)


def _vector(place: Place) -> Vector:
    return (float(place[0]), float(place[1]), float(place[2]))


def _pushed(points: Points, centre: Vector, radius: float, strength: float) -> Points:
    """Look tissue up nearer to the centre, so that it appears pushed away from it."""
    decay = np.exp(points.about(centre) ** 2 * (-0.5 / (1.2 * radius) ** 2))
    pull = strength * decay
    x, y, z = centre
    return Points(
        points.x + (x - points.x) * pull,
        points.y + (y - points.y) * pull,
        points.z + (z - points.z) * pull,
    )
