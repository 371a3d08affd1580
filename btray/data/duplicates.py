"""Which images are the same, or nearly: pure numpy, no Ray."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

THUMBNAIL: Final = 32
"""Side of the thumbnail that confirms a near duplicate, in pixels."""
MAX_DISTANCE: Final = 12
"""Largest Hamming distance of two 64-bit perceptual hashes of near-duplicate candidates."""
MIN_CORRELATION: Final = 0.95
"""Smallest correlation of two near duplicates' thumbnails.

Both were chosen by looking at pairs of the Kaggle slices. From 0.95 up, pairs are the same
slice stored again, sharpened or brightened, or slices of one head next to each other; below
0.93, heads of different people meet. Candidates up to distance 12 are needed for slices
whose contrast was changed a lot.
"""

_PAIRS_AT_ONCE: Final = 1 << 22

Pairs = NDArray[np.int64]
"""Row numbers [pairs, 2], the smaller first."""


@dataclass(frozen=True)
class Measures:
    """What the comparison needs of n images, in one order."""

    pixel_sha256: Sequence[str]
    """Hashes of the decoded pixels [n]."""
    phash: NDArray[np.uint64]
    """Perceptual hashes [n]."""
    thumbnails: NDArray[np.uint8]
    """Small versions [n, THUMBNAIL, THUMBNAIL]."""


@dataclass(frozen=True)
class Duplicates:
    """Images that belong together."""

    exact: NDArray[np.int64]
    """Number of the set of pixel-identical images each image is in [n]."""
    near: NDArray[np.int64]
    """The same for near-identical images, exact ones included [n]."""
    group_id: list[str]
    """Name of the group each image is in [n]: near-identical ones and those of a patient."""


def find_duplicates(
    measures: Measures,
    patients: Sequence[str | None],
    *,
    max_distance: int = MAX_DISTANCE,
    min_correlation: float = MIN_CORRELATION,
) -> Duplicates:
    """Group n images: identical, nearly identical, or of the same patient.

    A group's name is the first 16 hexadecimal digits of its smallest pixel hash, so it
    does not depend on the order of the images.
    """
    n = len(measures.pixel_sha256)
    exact = _numbered(measures.pixel_sha256)
    pairs = near_pairs(
        measures.phash, measures.thumbnails, max_distance=max_distance, correlation=min_correlation
    )
    near = _components(n, [_chain(measures.pixel_sha256), pairs])
    known = _chain([patient or (row,) for row, patient in enumerate(patients)])
    together = _components(n, [_chain(near.tolist()), known])
    smallest: dict[int, str] = {}
    for group, name in zip(together.tolist(), measures.pixel_sha256, strict=True):
        smallest[group] = min(name, smallest.get(group, name))
    return Duplicates(exact, near, [smallest[group][:16] for group in together.tolist()])


def near_pairs(
    phash: NDArray[np.uint64],
    thumbnails: NDArray[np.uint8],
    *,
    max_distance: int = MAX_DISTANCE,
    correlation: float = MIN_CORRELATION,
) -> Pairs:
    """Return the pairs [pairs, 2] close in hash [n] and in thumbnail [n, 32, 32].

    All pairs are compared, a strip of rows at a time: memory stays near 100 MB, time
    grows with n squared (6 million comparisons of hashes take about 0.03 s).
    """
    shapes = _normalised(thumbnails)
    n = len(phash)
    strip = max(1, _PAIRS_AT_ONCE // max(1, n))
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, n, strip):
        distance = np.bitwise_count(phash[start : start + strip, None] ^ phash[None, start:])
        left, right = np.nonzero(distance <= max_distance)
        ahead = right > left
        pairs = np.stack([left[ahead], right[ahead]], axis=1) + start
        found.append(_confirmed(pairs, shapes, correlation))
    return np.concatenate(found)


def count_groups(numbers: NDArray[np.int64]) -> dict[str, int]:
    """Return how many sets [n] have more than one image, and the `images` in them."""
    sizes = np.bincount(numbers) if len(numbers) else np.zeros(0, dtype=np.int64)
    several = sizes[sizes > 1]
    return {"groups": len(several), "images": int(several.sum())}


def count_conflicts(exact: NDArray[np.int64], labels: Sequence[str]) -> int:
    """Return how many sets of pixel-identical images carry more than one label."""
    seen = set(zip(exact.tolist(), labels, strict=True))
    return sum(count > 1 for count in Counter(group for group, _ in seen).values())


def _normalised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return thumbnails as vectors [n, pixels] of mean 0 and length 1 (or 0, if flat)."""
    vectors = thumbnails.reshape(len(thumbnails), THUMBNAIL * THUMBNAIL).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(length > 1e-3, length, np.float32(np.inf))
    return vectors


def _confirmed(pairs: Pairs, shapes: NDArray[np.float32], correlation: float) -> Pairs:
    kept = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(pairs), 1 << 13):
        some = pairs[start : start + (1 << 13)]
        similarity = np.einsum("ij,ij->i", shapes[some[:, 0]], shapes[some[:, 1]])
        kept.append(some[similarity >= correlation])
    return np.concatenate(kept)


def _numbered(keys: Sequence[str]) -> NDArray[np.int64]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _chain(keys: Sequence[Hashable]) -> Pairs:
    """Pair every row with the previous one of the same key."""
    last: dict[Hashable, int] = {}
    pairs = []
    for row, key in enumerate(keys):
        if key in last:
            pairs.append((last[key], row))
        last[key] = row
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _components(n: int, edges: Sequence[Pairs]) -> NDArray[np.int64]:
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    pairs = np.concatenate(edges)
    weights = np.ones(len(pairs), dtype=np.int8)
    graph = coo_array((weights, (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, numbers = connected_components(graph, directed=False)
    return np.asarray(numbers, dtype=np.int64)
