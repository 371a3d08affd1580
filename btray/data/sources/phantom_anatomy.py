"""A synthetic head: which tissue lies where. Schematic; it has no medical meaning.

The head is one three-dimensional model, so that axial, coronal and sagittal slices agree.
Its origin is near the thalamus; see `phantom_geometry` for the axes.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from btray.data.sources.phantom_geometry import (
    Floats,
    Mask,
    Points,
    Vector,
    Waves,
    blend,
    capsule,
    ellipsoid,
    length,
    ramp,
    within,
)

Labels = NDArray[np.uint8]
"""Tissue of every pixel [height, width]."""

SELLA: Vector = (0.0, 21.0, -30.0)
"""Centre of the pituitary gland, mm."""


class Tissue(IntEnum):
    """What a pixel holds."""

    AIR = 0
    BONE = 1
    MARROW = 2
    FAT = 3
    MUSCLE = 4
    CSF = 5
    GREY = 6
    WHITE = 7
    DEEP_GREY = 8
    VEIN = 9
    ARTERY = 10
    GLAND = 11
    CHOROID = 12
    HYPERINTENSITY = 13
    MUCOSA = 14
    NECROSIS = 15
    GLIOMA = 16
    OEDEMA = 17
    MENINGIOMA = 18
    ADENOMA = 19
    CYST = 20


@dataclass(frozen=True)
class Head:
    """One person's anatomy; nothing in it depends on a tumour."""

    size: Vector
    """Factors on the standard head along x, y and z."""
    bend: Waves
    """Waves that deform the head."""
    bend_by: Floats
    """Displacement of every wave [waves, 3], mm."""
    folds: Waves
    """Waves whose zeros are the sulci."""
    speckle: Waves
    """Waves that place vessels, hyperintensities and fat."""
    sulcus: float
    """Half width of a sulcus, mm."""
    sulcus_depth: float
    """Depth of the sulci, mm."""
    gap: float
    """Subarachnoid space between brain and skull, mm."""
    ventricle: float
    """Factor on the radius of the ventricles."""
    asymmetry: float
    """Relative difference of the left ventricle from the mean of both."""
    skull: float
    """Thickness of the skull, mm."""
    scalp: float
    """Thickness of the scalp, mm."""
    lesions: float
    """Amount of white-matter hyperintensities, 0..1."""
    vessels: float
    """Amount of visible cortical vessels, 0..1."""
    airways: float
    """Factor on the size of the paranasal sinuses."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw a person."""
        x, y, z = (float(value) for value in rng.uniform(0.9, 1.08, 3))
        atrophy = float(rng.beta(1.3, 2.5))
        return cls(
            size=(x, y, z),
            bend=Waves.draw(rng, 180.0, 3),
            bend_by=rng.normal(0, 2.2, (3, 3)).astype(np.float32),
            folds=Waves.draw(rng, float(rng.uniform(16, 21)), 9),
            speckle=Waves.draw(rng, 17.0, 5),
            sulcus=0.3 + 0.65 * atrophy + float(rng.uniform(0, 0.15)),
            sulcus_depth=float(rng.uniform(13, 19)),
            gap=1.6 + 3.5 * atrophy,
            ventricle=0.65 + 1.0 * atrophy + float(rng.uniform(0, 0.25)),
            asymmetry=float(rng.normal(0, 0.16)),
            skull=float(rng.uniform(5, 8.5)),
            scalp=float(rng.uniform(4, 8.5)),
            lesions=float(rng.beta(1, 2.2)),
            vessels=float(rng.uniform(0, 1)),
            airways=float(rng.uniform(0.7, 1.2)),
        )

    def to_anatomy(self, points: Points) -> Points:
        """Map points in the scanner to the standard head, mm."""
        waves = self.bend.parts(points)
        x, y, z = np.tensordot(self.bend_by.T, waves, axes=1)
        a, b, c = self.size
        return Points((points.x + x) / a, (points.y + y) / b, (points.z + z) / c)

    def to_scanner(self, place: Vector) -> Vector:
        """Map one point of the standard head to the scanner, mm."""
        wanted = np.array(place) * self.size
        found = wanted
        for _ in range(4):
            one = Points(*(np.full(1, value, np.float32) for value in found))
            there = self.to_anatomy(one)
            reached = np.array([there.x[0], there.y[0], there.z[0]]) * self.size
            found = found + wanted - reached
        return (float(found[0]), float(found[1]), float(found[2]))


@dataclass(frozen=True)
class Drawing:
    """The tissues of one slice of a head."""

    labels: Labels
    cavity: Floats
    """Signed distance to the inner table of the skull, mm, negative inside."""
    brain: Mask
    """Cerebrum, cerebellum and brainstem, ventricles included."""


def vault(points: Points) -> Floats:
    """Return the signed distance to the ellipsoid that the cranial vault is part of, mm."""
    return ellipsoid(points, (0, 0, 0), (68, 86, 72))


def cranial_cavity(points: Points) -> Floats:
    """Return the signed distance to the inner table of the skull, mm, negative inside."""
    floor = -19 - 26 * ramp(points.y, 18, -40)
    upper = np.maximum(vault(points), floor - points.z)
    sides = Points(np.abs(points.x), points.y, points.z)
    middle = ellipsoid(sides, (34, 0, -22), (29, 36, 27))
    lower = ellipsoid(points, (0, -43, -28), (51, 38, 33))
    base = blend(blend(upper, middle, 5.0), lower, 5.0)
    canal = capsule(points, (0, -10, -20), (0, -24, -62), 14.0)
    spine = capsule(points, (0, -24, -62), (0, -34, -190), 9.5)
    return blend(base, np.minimum(canal, spine), 4.0)


def draw_tissues(head: Head, skull: Points, inner: Points) -> Drawing:
    """Return the tissues at points of the standard head.

    `inner` are the points at which the brain is looked up: the same, unless something
    pushes the brain aside.
    """
    cavity = cranial_cavity(skull)
    speckle = head.speckle(skull)
    labels = np.full(cavity.shape, Tissue.AIR, np.uint8)
    _draw_soft_tissue(labels, head, skull, cavity, speckle)
    _draw_face(labels, head, skull)
    _draw_bone(labels, head, cavity, speckle)
    labels[cavity < 0] = Tissue.CSF
    inside = cavity < -1
    brain = _draw_cerebrum(labels, head, inner, inside, speckle)
    brain |= _draw_hindbrain(labels, inner, inside)
    _draw_sella(labels, skull)
    _draw_venous_sinuses(labels, skull, cavity)
    return Drawing(labels, cavity, brain)


def _fill(labels: Labels, mask: Mask | None, tissue: Tissue) -> None:
    if mask is not None:
        np.putmask(labels, mask, tissue)


def _draw_soft_tissue(
    labels: Labels, head: Head, points: Points, cavity: Floats, speckle: Floats
) -> None:
    thickness = head.skull + head.scalp
    round_head = blend(vault(points), cavity, 10.0) - thickness
    face = ellipsoid(points, (0, 50, -62), (54, 48, 66))
    neck = capsule(points, (0, -22, -70), (0, -36, -200), 50.0)
    skin = blend(blend(round_head, face, 16.0), neck, 14.0)
    jaw = ellipsoid(points, (0, 22, -72), (60, 46, 52))
    skin = blend(skin, jaw, 14.0)
    nose = ellipsoid(points, (0, 98, -45), (11, 15, 19))
    skin = blend(skin, nose, 8.0)
    _fill(labels, skin < 0, Tissue.MUSCLE)
    deep = cavity - head.skull
    fatty = (skin > -head.scalp) | (speckle > 1.3) & (deep > 8)
    _fill(labels, fatty & (skin < -1.3), Tissue.FAT)
    temporalis = (deep < 0.6 * head.scalp) & (np.abs(points.x) > 48) & (points.z < 22)
    _fill(labels, temporalis & (skin < -2.5), Tissue.MUSCLE)


def _draw_face(labels: Labels, head: Head, points: Points) -> None:
    sides = Points(np.abs(points.x), points.y, points.z)
    grow = head.airways
    _fill(labels, within(sides, (31, 64, -25), (19, 26, 18)), Tissue.FAT)
    _fill(labels, within(sides, (31, 74, -25), (13, 13, 13)), Tissue.CSF)
    if sides.meets((20, 45, -25), (20, 30, 8)):
        _fill(labels, capsule(sides, (30, 62, -25), (8, 28, -23), 2.3) < 0, Tissue.WHITE)
    nasal = within(points, (0, 68, -52), (13, 30, 21))
    if nasal is not None:
        turbinates = np.sin(points.z * 0.75 + np.abs(points.x) * 0.35) > 0.2
        _fill(labels, nasal, Tissue.AIR)
        _fill(labels, nasal & turbinates, Tissue.MUCOSA)
    antrum = (14 * grow, 17 * grow, 16 * grow)
    lining = (antrum[0] + 1.5, antrum[1] + 1.5, antrum[2] + 1.5)
    _fill(labels, within(sides, (29, 58, -55), lining), Tissue.MUCOSA)
    _fill(labels, within(sides, (29, 58, -55), antrum), Tissue.AIR)
    _fill(labels, within(points, (0, 36, -42), (12 * grow, 12 * grow, 9 * grow)), Tissue.AIR)
    _fill(labels, within(points, (5, 90, -8), (17 * grow, 5, 12 * grow)), Tissue.AIR)
    _fill(labels, within(points, (0, 28, -82), (9, 7, 30)), Tissue.AIR)
    _fill(labels, within(points, (0, 66, -84), (24, 28, 7)), Tissue.AIR)
    _draw_vertebrae(labels, points)


def _draw_vertebrae(labels: Labels, points: Points) -> None:
    if not points.meets((0, 0, -130), (16, 14, 60)):
        return
    front = points.y + 12 - 0.09 * (points.z + 90)
    column = (np.abs(points.x) < 15) & (np.abs(front) < 10) & (points.z < -72)
    disc = np.sin(points.z * (2 * np.pi / 19)) > 0.8
    _fill(labels, column, Tissue.MARROW)
    _fill(labels, column & disc, Tissue.BONE)


def _draw_bone(labels: Labels, head: Head, cavity: Floats, speckle: Floats) -> None:
    solid = labels != Tissue.AIR
    thickness = head.skull * (1 + 0.12 * speckle)
    _fill(labels, solid & (cavity < thickness), Tissue.BONE)
    diploe = np.abs(cavity - 0.52 * thickness) < 0.2 * thickness - 0.25
    _fill(labels, solid & diploe, Tissue.MARROW)


def _draw_cerebrum(
    labels: Labels, head: Head, points: Points, inside: Mask, speckle: Floats
) -> Mask:
    ring, angle = _arch(points)
    surface = _cerebral_surface(head, points)
    cerebrum = inside & (surface < 0)
    midline = np.abs(points.x + 0.7 * speckle)
    outside_arch = ring > 29
    medial = np.where(outside_arch, midline, np.float32(99))
    depth = np.minimum(-surface, medial)
    folded = cerebrum & (depth < head.sulcus_depth + 5)
    pial = np.minimum(depth + 0.4, medial - 0.7)
    sulci = _sulci(head, points.where(folded), depth[folded])
    pial[folded] = np.minimum(pial[folded], sulci)
    _fill(labels, cerebrum & (pial > 0), Tissue.GREY)
    _fill(labels, cerebrum & (pial > 3.3), Tissue.WHITE)
    vessel = cerebrum & (np.abs(pial + 0.1) < 0.7) & (speckle > 2.5 - 1.0 * head.vessels)
    _fill(labels, vessel, Tissue.VEIN)
    _draw_deep_grey(labels, points)
    _draw_callosum(labels, points, ring, angle)
    _draw_ventricles(labels, head, points, ring, angle, speckle)
    return cerebrum


def _cerebral_surface(head: Head, points: Points) -> Floats:
    """Return the signed distance to the cerebrum without its folds, mm."""
    sideways = np.abs(points.x)
    tent = 1 + 0.34 * (points.y + 25) - 0.30 * sideways
    front = np.full_like(tent, -18 + 0.4 * head.gap)
    share = ramp(points.y, -10, -26)
    bottom = front + (tent - front) * share
    upper = np.maximum(vault(points) + head.gap, bottom - points.z)
    sides = Points(sideways, points.y, points.z)
    grown = 1 - head.gap / 28
    temporal = ellipsoid(sides, (35, -1, -21), (28 * grown, 38 * grown, 25 * grown))
    return blend(upper, temporal, 3.0)


def _sulci(head: Head, points: Points, depth: Floats) -> Floats:
    """Return about the distance to the nearest sulcus, in mm, negative inside it."""
    stretch = 0.4 + 38 / (points.about((0, -2, 0)) + 12)
    spread = Points(points.x * stretch, points.y * stretch, points.z * stretch)
    steepness = float(np.linalg.norm(head.folds.directions, axis=1).mean())
    field = head.folds(spread)
    beyond = np.maximum(depth - head.sulcus_depth, 0)
    folded = length(field * (1 / (0.75 * steepness)), beyond)
    across = points.z + 4 - 0.3 * points.y + 2.5 * field
    sylvian = length(across, np.maximum(32 - np.abs(points.x), 0))
    sylvian += np.maximum(np.abs(points.y - 2) - 24, 0)
    nearest: Floats = np.minimum(folded, sylvian - 0.3)
    return nearest - head.sulcus


def _arch(points: Points) -> tuple[Floats, Floats]:
    """Return radius (mm) and angle (radians) around the thalamus in the sagittal plane.

    The angle is 0 at the front, pi / 2 at the top, and runs from -0.8 to 2 pi - 0.8.
    """
    y, z = (points.y + 7) * (1 / 1.35), points.z + 1
    angle = np.arctan2(z, y)
    return length(y, z), np.where(angle < -0.8, angle + np.float32(2 * np.pi), angle)


def _draw_deep_grey(labels: Labels, points: Points) -> None:
    sides = Points(np.abs(points.x), points.y, points.z)
    for centre, axes in (
        ((11, -10, 4), (9, 15, 10)),
        ((23, 4, 1), (6, 17, 9)),
        ((13, 18, 8), (5, 12, 11)),
    ):
        _fill(labels, within(sides, centre, axes), Tissue.DEEP_GREY)


def _draw_callosum(labels: Labels, points: Points, ring: Floats, angle: Floats) -> None:
    if not points.meets((0, 0, 0), (17, 99, 99)):
        return
    central = np.abs(points.x) < 17
    bulb = 2.6 + 1.6 * ramp(angle, 2.5, 3.2) + 1.2 * ramp(angle, 0.4, -0.1)
    arc = (angle > -0.45) & (angle < 3.35)
    _fill(labels, central & arc & (np.abs(ring - 26) < bulb), Tissue.WHITE)
    septum = (np.abs(points.x) < 2.5) & (ring < 24) & (points.z > 6)
    _fill(labels, septum, Tissue.DEEP_GREY)


def _draw_ventricles(
    labels: Labels, head: Head, points: Points, ring: Floats, angle: Floats, speckle: Floats
) -> None:
    side = np.where(points.x > 0, 1 + head.asymmetry, 1 - head.asymmetry)
    size = np.float32(head.ventricle) * np.clip(side, 0.5, 1.5)
    offset = 10.5 + 19 * ramp(angle, 1.6, 3.9)
    radius = 5.2 + 3.2 * ramp(angle, 1.9, 2.9) - 5.4 * ramp(angle, 3.2, 4.5)
    radius = radius * np.sqrt(np.clip((angle + 0.35) * 1.6, 0, 1)) * (angle < 4.5)
    distance = length(ring - 20.5, (np.abs(points.x) - offset) * 0.95) - radius * size
    white = labels == Tissue.WHITE
    rim = white & (distance < 6 * head.lesions) & (speckle > 1.6 - 1.6 * head.lesions)
    spots = white & (speckle > 3.0 - 1.1 * head.lesions)
    _fill(labels, rim | spots, Tissue.HYPERINTENSITY)
    lateral = (distance < 0) & (radius > 0.8)
    _fill(labels, lateral, Tissue.CSF)
    plexus = (distance > -3.2) & (distance < -0.6) & (angle > 2.0) & (ring < 20.5)
    _fill(labels, plexus & lateral & (speckle > -0.6), Tissue.CHOROID)
    third = within(points, (0, -2, -2), (1.6 + 1.6 * head.ventricle, 13, 11))
    _fill(labels, third, Tissue.CSF)


def _draw_hindbrain(labels: Labels, points: Points, inside: Mask) -> Mask:
    stem = _brainstem(points)
    sideways = np.abs(points.x)
    sides = Points(sideways, points.y, points.z)
    hemisphere = ellipsoid(sides, (21, -45, -36), (28, 29, 22))
    vermis = ellipsoid(points, (0, -47, -32), (12, 23, 21))
    tent = -0.5 + 0.34 * (points.y + 25) - 0.30 * sideways
    cerebellum = np.maximum(blend(hemisphere, vermis, 4.0), points.z - tent)
    _draw_folia(labels, points, cerebellum, inside)
    brainstem = inside & (stem < 0)
    _fill(labels, brainstem, Tissue.WHITE)
    fourth = within(points, (0, -29, -36), (7, 4.5, 11))
    _fill(labels, fourth, Tissue.CSF)
    return inside & (np.minimum(stem, cerebellum) < 0)


def _brainstem(points: Points) -> Floats:
    midbrain = capsule(points, (0, -9, -8), (0, -13, -24), 11.5)
    pons = ellipsoid(points, (0, -11, -32), (15, 13, 13))
    medulla = capsule(points, (0, -18, -44), (0, -25, -70), 7.0)
    cord = capsule(points, (0, -25, -66), (0, -34, -190), 5.5)
    return blend(blend(midbrain, pons, 3.0), blend(medulla, cord, 3.0), 5.0)


def _draw_folia(labels: Labels, points: Points, surface: Floats, inside: Mask) -> None:
    cerebellum = inside & (surface < 0)
    if not cerebellum.any():
        return
    fan = np.arctan2(points.z + 36, points.y + 28) * 22 + 0.12 * np.abs(points.x)
    leaf = np.abs(np.sin(fan))
    pial = np.minimum(-surface, leaf * 3.2 + np.maximum(-surface - 9, 0))
    _fill(labels, cerebellum, Tissue.GREY)
    _fill(labels, cerebellum & (pial < 0.5), Tissue.CSF)
    _fill(labels, cerebellum & (pial > 2.9), Tissue.WHITE)


def _draw_sella(labels: Labels, points: Points) -> None:
    """Draw the gland in its fossa and the carotid and basilar arteries around it."""
    x, y, z = SELLA
    _fill(labels, within(points, (x, y, z - 1), (10, 9, 7.5)), Tissue.BONE)
    _fill(labels, within(points, (x, y, z + 3), (9, 7, 6.5)), Tissue.CSF)
    _fill(labels, within(points, (x, y, z - 1), (7.5, 5, 3.6)), Tissue.GLAND)
    _fill(labels, within(points, (x, y - 2, z + 7), (1.3, 1.3, 6)), Tissue.GLAND)
    sides = Points(np.abs(points.x), points.y, points.z)
    _fill(labels, within(sides, (14, y - 2, z), (4.2, 9, 5)), Tissue.VEIN)
    _fill(labels, within(sides, (13, y, z), (2.6, 2.6, 9)), Tissue.ARTERY)
    if points.meets((0, 4, -34), (2, 4, 16)):
        basilar = capsule(points, (0, 5, -22), (0, 3, -46), 1.7) < 0
        _fill(labels, basilar, Tissue.ARTERY)


def _draw_venous_sinuses(labels: Labels, points: Points, cavity: Floats) -> None:
    near = (cavity < 0) & (cavity > -6)
    superior = (np.abs(points.x) < 4.5 + 0.5 * cavity) & (points.z > -12)
    _fill(labels, near & superior, Tissue.VEIN)
    tent = 0.34 * (points.y + 25) - 0.30 * np.abs(points.x)
    transverse = (np.abs(points.z - tent) < 3.5) & (points.y < -38)
    _fill(labels, near & transverse, Tissue.VEIN)
