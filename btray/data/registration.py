"""Whether two thumbnails show the same slice, once one is laid over the other; no Ray.

The registration is the inverse compositional Gauss-Newton iteration of Baker and Matthews
(Lucas-Kanade 20 years on, 2004) for affine maps, over a pyramid and on many pairs at a time.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

_MIN_COARSE: Final = 0.8
"""Smallest correlation on the coarsest level of a pair that is looked at more closely."""
_MIN_MIDDLE: Final = 0.8
"""The same on the middle level, and below it for the details there."""
_MIN_MIDDLE_DETAILS: Final = 0.7
_UNSURE: Final = (0.75, 0.9)
"""Similarities between these are worth a finer registration."""
_MIN_OVERLAP: Final = 0.5
"""Smallest share of the first image that must lie inside the second."""
_LARGEST_STEP: Final = 0.12
_SCALES: Final = (0.4, 2.5)
"""Smallest and largest ratio of areas."""

Floats = NDArray[np.float32]


def glance(first: NDArray[np.uint8], second: NDArray[np.uint8], starts: Floats) -> Floats:
    """Return a rough similarity of n pairs of thumbnails: -1..1 [n].

    It is the correlation of thumbnails a quarter of the size after two steps from the maps
    `starts` [n, 2, 3]: 50 times cheaper than `similarity`, and enough to sort by.
    """
    one, other = (_shrunk(_unit(images), 4) for images in (first, second))
    return _register(one, other, starts, steps=2)[0]


def similarity(first: NDArray[np.uint8], second: NDArray[np.uint8], starts: Floats) -> Floats:
    """Return how alike n pairs of thumbnails [n, side, side] are: -1..1 [n].

    It is the correlation of their details (what a Gaussian of a sixteenth of the side
    smooths away) where they overlap, best laid over one another from the maps
    `starts` [n, starts, 2, 3]. Pairs that do not meet at all are given -1.
    """
    one, other = (_unit(images) for images in (first, second))
    alike = np.full(len(one), -1, dtype=np.float32)
    a, b = _shrunk(one, 4), _shrunk(other, 4)
    tries = [_register(a, b, starts[:, k], steps=2) for k in range(starts.shape[1])]
    best = np.stack([score for score, _ in tries]).argmax(axis=0)
    move = np.stack([moves for _, moves in tries])[best, np.arange(len(one))]
    score, move = _register(a, b, move, steps=5)
    rows = np.flatnonzero(score >= _MIN_COARSE)
    a, b = _shrunk(one[rows], 2), _shrunk(other[rows], 2)
    score, move = _register(a, b, move[rows], steps=4)
    met = (score >= _MIN_MIDDLE) & (_alike_in_details(a, b, move) >= _MIN_MIDDLE_DETAILS)
    rows, move = rows[met], move[met]
    area = np.abs(np.linalg.det(move[:, :, :2]))
    sound = (area > _SCALES[0]) & (area < _SCALES[1])
    rows, move = rows[sound], move[sound]
    alike[rows] = _alike_in_details(one[rows], other[rows], move)
    unsure = (alike[rows] > _UNSURE[0]) & (alike[rows] < _UNSURE[1])
    rows, move = rows[unsure], move[unsure]
    _, move = _register(one[rows], other[rows], move, steps=3)
    alike[rows] = np.maximum(alike[rows], _alike_in_details(one[rows], other[rows], move))
    return alike


def _alike_in_details(first: Floats, second: Floats, move: Floats) -> Floats:
    """Return the correlation [n] of the details of images, the second seen through maps."""
    warped, inside = _warp(_details(second), move)
    return _centred(_details(first).reshape(warped.shape), warped, inside)[0]


def _register(first: Floats, second: Floats, move: Floats, steps: int) -> tuple[Floats, Floats]:
    """Improve maps [n, 2, 3]; return the best correlations [n] seen and their maps."""
    solver = _solver(first)
    flat = first.reshape(len(first), first.shape[1] * first.shape[2])
    best, best_move = np.full(len(first), -1, dtype=np.float32), move.copy()
    for step in range(steps + 1):
        warped, inside = _warp(second, move)
        correlation, a, b = _centred(flat, warped, inside)
        better = (correlation > best) & (inside.mean(axis=1) > _MIN_OVERLAP)
        best[better], best_move[better] = correlation[better], move[better]
        if step < steps:
            change = (solver @ (b - a)[:, :, None]).reshape(-1, 2, 3)
            move = _compose(move, np.clip(change, -_LARGEST_STEP, _LARGEST_STEP))
    return best, best_move


def _solver(images: Floats) -> Floats:
    """Return what turns residuals into the least-squares change of a map [n, 6, pixels]."""
    jacobian = _jacobian(images)
    jacobian -= jacobian.mean(axis=2, keepdims=True)
    normal = jacobian @ jacobian.transpose(0, 2, 1)
    damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) / 6 + 1e-6
    normal += damping[:, None, None] * np.eye(6, dtype=np.float32)
    return np.asarray(np.linalg.inv(normal) @ jacobian, dtype=np.float32)


def _jacobian(images: Floats) -> Floats:
    """Return how images [n, side, side] change with a map's six numbers [n, 6, pixels]."""
    n, side, _ = images.shape
    across, down = _places(side)
    change_down, change_across = np.gradient(images, 1 / side, axis=(1, 2))
    return np.stack(
        [
            change.reshape(n, side * side) * weight
            for change in (change_across, change_down)
            for weight in (across, down, np.float32(1))
        ],
        axis=1,
    ).astype(np.float32)


def _compose(move: Floats, change: Floats) -> Floats:
    """Return maps [n, 2, 3] after the inverse of changes to the identity [n, 2, 3]."""
    square = np.zeros((len(move), 3, 3), dtype=np.float32)
    square[:, :2], square[:, 2, 2] = change, 0
    return (_square(move) @ np.linalg.inv(square + np.eye(3, dtype=np.float32)))[:, :2]


def _square(move: Floats) -> Floats:
    last = np.broadcast_to(np.array([0, 0, 1], dtype=np.float32), (len(move), 1, 3))
    return np.concatenate([move, last], axis=1)


def _warp(images: Floats, move: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Sample images [n, side, side] bilinearly through maps; return values and validity."""
    n, side, _ = images.shape
    across, down = _places(side)
    x, y = (
        (row[:, :1] * across + row[:, 1:2] * down + row[:, 2:] + np.float32(0.5)) * side
        - np.float32(0.5)
        for row in (move[:, 0], move[:, 1])
    )
    inside = (x > -0.5) & (x < side - 0.5) & (y > -0.5) & (y < side - 0.5)
    np.clip(x, 0, side - 1.001, out=x)
    np.clip(y, 0, side - 1.001, out=y)
    left, top = x.astype(np.int64), y.astype(np.int64)
    x -= left
    y -= top
    corner = top * side + left + (np.arange(n) * side * side)[:, None]
    flat = images.reshape(-1)
    upper = flat.take(corner)
    upper += (flat.take(corner + 1) - upper) * x
    lower = flat.take(corner + side)
    lower += (flat.take(corner + side + 1) - lower) * x
    upper += (lower - upper) * y
    return upper, inside


def _centred(
    first: Floats, second: Floats, inside: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """Return correlations [n] over valid pixels, and both images [n, pixels] centred there.

    The second is scaled to the first's spread, so that their difference is due to place.
    """
    valid = inside.astype(np.float32)
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    a = (first - (first * valid).sum(axis=1, keepdims=True) / count) * valid
    b = (second - (second * valid).sum(axis=1, keepdims=True) / count) * valid
    size_a, size_b = (np.linalg.norm(c, axis=1, keepdims=True) for c in (a, b))
    correlation = (a * b).sum(axis=1) / np.maximum(size_a * size_b, 1e-6)[:, 0]
    b *= size_a / np.maximum(size_b, 1e-6)
    return correlation, a, b


def _details(images: Floats) -> Floats:
    """Return images [n, side, side] without what is large, and without noise."""
    side = images.shape[1]
    smooth = gaussian_filter(images, (0, 0.7, 0.7))
    return np.asarray(smooth - gaussian_filter(images, (0, side / 16, side / 16)), np.float32)


def _unit(images: NDArray[np.uint8]) -> Floats:
    return np.asarray(images / np.float32(255), dtype=np.float32)


def _shrunk(images: Floats, factor: int) -> Floats:
    n, side, _ = images.shape
    small = side // factor
    blocks = images.reshape(n, small, factor, small, factor)
    return np.asarray(blocks.mean(axis=(2, 4)), dtype=np.float32)


def _places(side: int) -> tuple[Floats, Floats]:
    """Return where the pixels of a frame lie, across and down [pixels], -0.5..0.5."""
    places = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    down, across = np.meshgrid(places, places, indexing="ij")
    return across.ravel(), down.ravel()
