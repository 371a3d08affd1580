"""Pairs of images worth a close look, found without comparing all pairs; no Ray.

An image is described by the low frequencies of its thumbnail: a discrete cosine transform,
as a perceptual hash is, but not rounded to bits. What a turned, flipped, rotated or cropped
thumbnail is described by is a linear function of the thumbnail too, so the descriptions of
all variants come from one matrix product. An inverted file (Sivic and Zisserman, 2003)
spares most comparisons: a variant is compared only with the images in the cells next to it.
"""

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

NEIGHBOURS: Final = 40
"""Candidates kept for each image."""
STARTS: Final = 3
"""Variants kept for each candidate: where its registration starts from."""

_SIDE: Final = 32
"""Side at which thumbnails are described."""
_FREQUENCIES: Final = tuple((u, v) for u in range(8) for v in range(8) if 0 < u + v <= 8)
_ANGLES: Final = (0.0, -8.0, 8.0)
"""Rotations in degrees."""
_WINDOWS: Final = (
    (0.92, 0.0, 0.0),
    *((0.86, x, y) for x in (-0.07, 0.0, 0.07) for y in (-0.07, 0.0, 0.07)),
)
"""Crops: side and the centre's place across and down, as shares of the frame."""
_LEAST: Final = 0.6
"""Smallest similarity of a candidate."""
_PROBES: Final = 5
"""Cells a variant is looked up in."""
_ROWS_AT_ONCE: Final = 2048

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """n pairs of images, the most similar first."""

    pairs: Integers
    """Row numbers [n, 2]: the second may be a copy of the first, or of a part of it."""
    starts: Floats
    """Maps [n, STARTS, 2, 3] from places in the first's frame to places in the second's.

    A frame reaches from -0.5 to 0.5, across and then down.
    """

    def some(self, chosen: slice | NDArray[np.bool_] | Integers) -> "Candidates":
        """Return the chosen ones of the pairs, in the order chosen."""
        return Candidates(self.pairs[chosen], self.starts[chosen])


def find_candidates(thumbnails: NDArray[np.uint8]) -> Candidates:
    """Return the pairs among n thumbnails [n, side, side] that may show the same slice.

    Time grows with n to the power of 1.5; beyond the thumbnails and the result, memory
    stays near 500 MB.
    """
    maps = variants()
    bank = np.concatenate([_basis(one) for one in maps])
    frames = _reduced(thumbnails)
    upright = _unit(frames @ _basis(np.eye(2, 3)).T)
    cells = _Cells.of(upright)
    pairs, scores, starts = [], [], []
    for start in range(0, len(frames), _ROWS_AT_ONCE):
        some = frames[start : start + _ROWS_AT_ONCE]
        described = _unit((some @ bank.T).reshape(len(some), len(maps), -1))
        found = _nearest(described, upright, cells, start)
        for part in np.array_split(found, len(found) // _ROWS_AT_ONCE + 1):
            similar = described[part[:, 0] - start] @ upright[part[:, 1], :, None]
            order = np.argsort(-similar[:, :, 0], axis=1, kind="stable")[:, :STARTS]
            pairs.append(part)
            scores.append(np.take_along_axis(similar[:, :, 0], order[:, :1], axis=1)[:, 0])
            starts.append(maps[order])
    return _distinct(np.concatenate(pairs), np.concatenate(scores), np.concatenate(starts))


def variants() -> Floats:
    """Return the maps [variants, 2, 3] of every turn, flip, rotation and crop looked for."""
    moves = [_rotation(angle) for angle in _ANGLES]
    moves += [
        np.array([[1 / side, 0, -x / side], [0, 1 / side, -y / side], [0, 0, 1]])
        for side, x, y in _WINDOWS
    ]
    swaps = (np.eye(3), np.eye(3)[[1, 0, 2]])
    signs = [np.diag([x, y, 1]) for x in (1, -1) for y in (1, -1)]
    maps = [sign @ swap @ move for swap in swaps for sign in signs for move in moves]
    return np.stack(maps)[:, :2].astype(np.float32)


def _rotation(angle: float) -> NDArray[np.float64]:
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def _basis(move: NDArray[np.floating]) -> Floats:
    """Return cosines [frequencies, pixels] as seen through a map: 0 where it leads outside."""
    places = (np.arange(_SIDE) + 0.5) / _SIDE - 0.5
    down, across = np.meshgrid(places, places, indexing="ij")
    x, y = (row[0] * across + row[1] * down + row[2] + 0.5 for row in move)
    inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    waves = [np.cos(np.pi * u * x) * np.cos(np.pi * v * y) for u, v in _FREQUENCIES]
    # Natural images have less energy in higher frequencies: the factor makes up for some.
    weights = [np.hypot(u, v) ** 0.5 for u, v in _FREQUENCIES]
    rows = [
        np.where(inside, (wave - wave[inside].mean()) * weight, 0)
        for wave, weight in zip(waves, weights, strict=True)
    ]
    return np.stack(rows).reshape(len(rows), -1).astype(np.float32)


def _reduced(thumbnails: NDArray[np.uint8]) -> Floats:
    """Return thumbnails as vectors [n, _SIDE * _SIDE] of means."""
    n, side, _ = thumbnails.shape
    blocks = thumbnails.reshape(n, _SIDE, side // _SIDE, _SIDE, side // _SIDE)
    return np.asarray(blocks.mean(axis=(2, 4)), dtype=np.float32).reshape(n, -1)


def _unit(vectors: Floats) -> Floats:
    """Scale vectors in place to length 1 (or 0, of a flat image), and return them."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors /= np.where(length > 1e-3, length, np.float32(np.inf))
    return vectors


@dataclass(frozen=True)
class _Cells:
    """Descriptions sorted into cells around centres."""

    centres: Floats
    members: list[Integers]

    @classmethod
    def of(cls, described: Floats) -> "_Cells":
        """Make about 0.8 times the square root of n cells."""
        n = len(described)
        count = max(1, round(0.8 * n**0.5))
        first = described[np.arange(count) * n // count]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "One of the clusters is empty")
            centres, _ = kmeans2(described, first, iter=8, minit="matrix")
        centres = _unit(np.ascontiguousarray(centres, dtype=np.float32))
        home = (described @ centres.T).argmax(axis=1)
        return cls(centres, [np.flatnonzero(home == cell) for cell in range(count)])


def _nearest(described: Floats, upright: Floats, cells: _Cells, start: int) -> Integers:
    """Return pairs [m, 2] of rows (from `start` on) and the NEIGHBOURS most like a variant."""
    rows, number, size = described.shape
    flat = described.reshape(rows * number, size)
    probes = min(_PROBES, len(cells.members))
    nearest = np.argpartition(-(flat @ cells.centres.T), probes - 1, axis=1)[:, :probes]
    near = nearest.ravel().astype(np.uint16)  # for which numpy sorts by radix
    order = np.argsort(near, kind="stable")
    ends = np.searchsorted(near[order], np.arange(len(cells.members) + 1))
    found = []
    for cell, members in enumerate(cells.members):
        looked_up = order[ends[cell] : ends[cell + 1]] // probes
        if not len(looked_up) or not len(members):
            continue
        owner, first = np.unique(looked_up // number, return_index=True)
        similar = np.maximum.reduceat(flat[looked_up] @ upright[members].T, first, axis=0)
        similar[(owner + start)[:, None] == members] = -1
        kept = min(NEIGHBOURS, len(members))
        best = np.argpartition(-similar, kept - 1, axis=1)[:, :kept]
        score = np.take_along_axis(similar, best, axis=1).ravel()
        found.append((np.repeat(owner + start, kept), members[best].ravel(), score))
    owner, other, score = (np.concatenate(parts) for parts in zip(*found, strict=True))
    owner, other, score = (part[score >= _LEAST] for part in (owner, other, score))
    order = np.lexsort((other, -score, owner))
    owner, other = owner[order], other[order]
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return np.stack([owner, other], axis=1)[rank < NEIGHBOURS]


def _distinct(pairs: Integers, scores: Floats, starts: Floats) -> Candidates:
    """Keep the better of a pair's two directions; sort by similarity."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -scores))
    key = np.sort(pairs[order], axis=1)
    _, first = np.unique(key, axis=0, return_index=True)
    order = order[np.sort(first)]
    return Candidates(pairs[order], starts[order])
