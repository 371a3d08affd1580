"""Shapes and smooth random fields over the points of one slice; numpy only.

Points are in millimetres: x to the patient's left, y anterior, z superior.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""Float32 arrays: in float64 everything here takes twice as long."""
Mask = NDArray[np.bool_]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Points:
    """Where the pixels of a slice lie; arrays of one shape, in mm."""

    x: Floats
    y: Floats
    z: Floats

    @cached_property
    def bounds(self) -> tuple[Vector, Vector]:
        """Smallest and largest coordinates."""
        axes = (self.x, self.y, self.z)
        low, high = ([float(reduce(axis)) for axis in axes] for reduce in (np.min, np.max))
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def meets(self, centre: Vector, reach: Vector) -> bool:
        """Say whether a box of half sides `reach` around a centre can hold a point."""
        low, high = self.bounds
        return all(
            bottom - extent < middle < top + extent
            for bottom, top, middle, extent in zip(low, high, centre, reach, strict=True)
        )

    def where(self, mask: Mask) -> "Points":
        """Return the points [n] that a mask selects."""
        return Points(self.x[mask], self.y[mask], self.z[mask])

    def about(self, centre: Vector, axes: Vector = (1.0, 1.0, 1.0)) -> Floats:
        """Return distances from a centre, in units of the axes of an ellipsoid."""
        total = np.zeros_like(self.x)
        for axis, middle, extent in zip((self.x, self.y, self.z), centre, axes, strict=True):
            part = axis - middle
            part *= 1 / extent
            part *= part
            total += part
        return np.sqrt(total, out=total)


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of plane waves with standard deviation 1."""

    directions: Floats
    """Wave vectors [waves, 3], radians per mm."""
    phases: Floats
    """Phases [waves], radians."""

    @classmethod
    def draw(cls, rng: np.random.Generator, wavelength: float, count: int) -> Self:
        """Draw waves of about the given wavelength, in mm, in all directions."""
        directions = rng.standard_normal((count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = wavelength * rng.uniform(0.75, 1.3, (count, 1))
        phases = rng.uniform(0, 2 * np.pi, count)
        return cls((directions * 2 * np.pi / lengths).astype(np.float32), phases.astype(np.float32))

    def parts(self, points: Points) -> Floats:
        """Return every wave [waves, *shape], each of standard deviation 1 / sqrt(waves)."""
        flat = np.stack([points.x.ravel(), points.y.ravel(), points.z.ravel()])
        angles = self.directions @ flat + self.phases[:, None]
        waves = np.sin(angles, out=angles) * np.float32(np.sqrt(2 / len(self.phases)))
        shaped: Floats = waves.reshape(-1, *points.x.shape)
        return shaped

    def __call__(self, points: Points) -> Floats:
        """Return the field at the points, of their shape."""
        total: Floats = self.parts(points).sum(axis=0)
        return total


def ellipsoid(points: Points, centre: Vector, axes: Vector) -> Floats:
    """Return about the signed distance to an ellipsoid, in mm, negative inside."""
    inside = points.about(centre, axes)
    a, b, c = axes
    slope = points.about(centre, (a * a, b * b, c * c))
    distance: Floats = inside * (inside - 1) / np.maximum(slope, np.float32(1e-6))
    return distance


def within(points: Points, centre: Vector, axes: Vector) -> Mask | None:
    """Return which points an ellipsoid holds, or None where the slice misses it."""
    if not points.meets(centre, axes):
        return None
    return points.about(centre, axes) < 1


def capsule(points: Points, start: Vector, stop: Vector, radius: float) -> Floats:
    """Return the signed distance to a rod with round ends, in mm, negative inside."""
    along = np.subtract(stop, start)
    dx, dy, dz = (float(component) for component in along)
    square = float(along @ along)
    x, y, z = points.x - start[0], points.y - start[1], points.z - start[2]
    share = np.clip((x * dx + y * dy + z * dz) * (1 / square), 0, 1)
    distance: Floats = length(length(x - share * dx, y - share * dy), z - share * dz)
    return distance - radius


def length(first: Floats, second: Floats) -> Floats:
    """Return the length of vectors; faster than `np.hypot`, which guards against overflow."""
    return np.sqrt(first * first + second * second)


def blend(first: Floats, second: Floats, width: float) -> Floats:
    """Return the union of two distances, rounded where they meet over `width` mm."""
    share: Floats = np.clip(0.5 + (second - first) * (0.5 / width), 0, 1)
    return second + (first - second) * share - width * share * (1 - share)


def ramp(values: Floats, start: float, stop: float) -> Floats:
    """Return a smooth step from 0 at `start` to 1 at `stop`."""
    share: Floats = np.clip((values - start) * (1 / (stop - start)), 0, 1)
    return share * share * (3 - 2 * share)
