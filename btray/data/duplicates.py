"""Which images are the same, or nearly: pure numpy and threads, no Ray."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from btray.cluster import local_cores
from btray.data.candidates import Candidates, find_candidates
from btray.data.registration import glance, similarity

MIN_SIMILARITY: Final = 0.88
"""Smallest similarity of near duplicates.

Chosen by looking at pairs of the Kaggle slices. From 0.88 up, pairs are the same slice stored
again, in whatever way, or slices of one head next to each other, mirrored ones too; from 0.85
down, heads of different people meet.
"""

LOOKED_AT: Final = 5
"""Candidates of each image, the likeliest at a glance, that are compared in full."""

MIN_FRAME_SIMILARITY: Final = 0.92
"""Smallest correlation of the detail of two whole images of one head.

Chosen by looking at pairs of the Kaggle slices that the heads had not told: from 0.92 up, all were
of one head, mirrored, filtered, or next to each other; from 0.9 down, heads of different people
meet.
"""

_FRAME_BLUR: Final = 2.5
"""Standard deviation of what is taken from a frame to leave its detail, in its pixels."""
_FRAMES_AT_ONCE: Final = 1024
_BLANK: Final = 1.0
"""Length of the detail of a frame, in grey values, up to which there is nothing to compare."""
_MIN_GLANCE: Final = 0.78
_PAIRS_AT_ONCE: Final = 128
_PAIRS_A_ROUND: Final = 512

Floats = NDArray[np.float32]
Pairs = NDArray[np.int64]
"""Row numbers [pairs, 2]."""


@dataclass(frozen=True)
class Measures:
    """What the comparison needs of n images, in one order."""

    pixel_sha256: Sequence[str]
    """Hashes of the decoded pixels [n]."""
    thumbnails: NDArray[np.uint8]
    """The heads [n, side, side], as `btray.data.head.thumbnail` makes them."""
    frames: NDArray[np.uint8]
    """The whole images [n, side, side], as `btray.data.head.frame` makes them."""


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
    min_similarity: float = MIN_SIMILARITY,
) -> Duplicates:
    """Group n images: identical, nearly identical, or of the same patient.

    Nearly identical is what shows the same slice however it was stored: re-encoded, resized,
    brightened, flipped, turned, rotated by up to about 12 degrees, its border cropped or up
    to about 15 % of the head's side cut off; and slices next to each other of one head.
    The heads are compared, and the whole images too: where a frame around it, or noise, has the
    head found in another box, the heads do not lie on one another. Groups are joined over chains.

    A group's name is the first 16 hexadecimal digits of its smallest pixel hash. Neither
    the names nor the groups depend on the order of the images.
    """
    n = len(measures.pixel_sha256)
    exact = _numbered(measures.pixel_sha256)
    pairs = near_pairs(measures, min_similarity)
    frames = frame_pairs(measures)
    near = _components(n, [_chain(measures.pixel_sha256), pairs, frames])
    known = _chain([patient or (row,) for row, patient in enumerate(patients)])
    together = _components(n, [_chain(near.tolist()), known])
    smallest: dict[int, str] = {}
    for group, name in zip(together.tolist(), measures.pixel_sha256, strict=True):
        smallest[group] = min(name, smallest.get(group, name))
    return Duplicates(exact, near, [smallest[group][:16] for group in together.tolist()])


def people(patients: Sequence[str | None], studies: Sequence[str | None]) -> list[str | None]:
    """Return who each of n images is of, as far as its patient or its study tells.

    Images of one patient or of one study are of one person, over chains of both: a study in
    which some files lack the patient's identifier, or have another, stays together.
    """
    keys = [p or s for p, s in zip(patients, studies, strict=True)]
    unknown = [key is None for key in keys]
    chains = [
        _chain([value or (row,) for row, value in enumerate(values)])
        for values in (patients, studies)
    ]
    names: dict[int, str] = {}
    together = _components(len(keys), chains).tolist()
    for number, key in zip(together, keys, strict=True):
        if key is not None:
            names[number] = min(key, names.get(number, key))
    return [None if un else names[number] for un, number in zip(unknown, together, strict=True)]


def near_pairs(measures: Measures, min_similarity: float = MIN_SIMILARITY) -> Pairs:
    """Return pairs [pairs, 2] of near duplicates that join all groups there are.

    A pair whose images are in one group by other pairs already is not looked at.
    """
    # Each picture once, and in an order of its own: so the result has no other.
    _, rows = np.unique(np.asarray(measures.pixel_sha256, dtype=str), return_index=True)
    if len(rows) < 2:
        return np.empty((0, 2), dtype=np.int64)
    thumbnails = measures.thumbnails[rows]
    candidates = shortlist(thumbnails)
    found = np.empty((0, 2), dtype=np.int64)
    for start in range(0, len(candidates.pairs), _PAIRS_A_ROUND):
        some = candidates.some(slice(start, start + _PAIRS_A_ROUND))
        group = _components(len(rows), [found])
        some = some.some(group[some.pairs[:, 0]] != group[some.pairs[:, 1]])
        alike = compare(thumbnails, some) >= min_similarity
        found = np.concatenate([found, some.pairs[alike]])
    return rows[found]


def frame_pairs(measures: Measures, min_similarity: float = MIN_FRAME_SIMILARITY) -> Pairs:
    """Return pairs [pairs, 2] that join all images that are alike as a whole.

    The detail of the whole image is correlated, as it is, mirrored and turned by quarters, of each
    picture with each: time grows with n squared.
    """
    _, rows = np.unique(np.asarray(measures.pixel_sha256, dtype=str), return_index=True)
    frames = measures.frames[rows].astype(np.float32)
    detail = frames - gaussian_filter(frames, (0, _FRAME_BLUR, _FRAME_BLUR))
    straight = _unit(detail)
    joined = np.arange(len(rows))
    for start in range(0, len(rows), _FRAMES_AT_ONCE):
        block = detail[start : start + _FRAMES_AT_ONCE]
        alike = [_chain(joined.tolist())]
        for side, quarters in product((block, block[:, :, ::-1]), range(4)):
            turned = _unit(np.rot90(side, quarters, axes=(1, 2)))
            first, second = np.nonzero(turned @ straight[start:].T >= min_similarity)
            alike.append(np.stack([first, second], axis=1) + start)
        joined = _components(len(rows), alike)
    return rows[_chain(joined.tolist())]


def _unit(detail: Floats) -> Floats:
    """Return frames [n, side, side] as vectors of length 1; of blank ones, of length 0."""
    vectors = detail.reshape(len(detail), detail.shape[1] * detail.shape[2])
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > _BLANK)
    return unit


def shortlist(thumbnails: NDArray[np.uint8]) -> Candidates:
    """Return the pairs among n thumbnails [n, side, side] to compare, the likeliest first."""
    candidates = find_candidates(thumbnails)
    alike = _on_all_cores(
        lambda first, second, starts: glance(first, second, starts[:, 0]), thumbnails, candidates
    )
    rank = np.minimum(*(_ranks(rows, alike) for rows in candidates.pairs.T))
    order = np.argsort(-alike, kind="stable")
    return candidates.some(order[(rank[order] < LOOKED_AT) & (alike[order] >= _MIN_GLANCE)])


def compare(thumbnails: NDArray[np.uint8], candidates: Candidates) -> Floats:
    """Return the similarity, -1..1, of candidates [n] among thumbnails."""
    return _on_all_cores(similarity, thumbnails, candidates)


def _on_all_cores(
    function: Callable[[NDArray[np.uint8], NDArray[np.uint8], Floats], Floats],
    thumbnails: NDArray[np.uint8],
    candidates: Candidates,
) -> Floats:
    def part(start: int) -> Floats:
        some = candidates.some(slice(start, start + _PAIRS_AT_ONCE))
        first, second = some.pairs.T
        return function(thumbnails[first], thumbnails[second], some.starts)

    with ThreadPoolExecutor(local_cores()) as threads:
        starts = range(0, len(candidates.pairs), _PAIRS_AT_ONCE)
        return np.concatenate([np.zeros(0, np.float32), *threads.map(part, starts)])


def _ranks(rows: NDArray[np.int64], alike: Floats) -> NDArray[np.int64]:
    """Return the place [n] of every pair among those of the same row, from 0."""
    order = np.lexsort((-alike, rows))
    ranks = np.empty(len(rows), dtype=np.int64)
    ranks[order] = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
    return ranks


def count_groups(numbers: NDArray[np.int64]) -> dict[str, int]:
    """Return how many sets [n] have more than one image, and the `images` in them."""
    sizes = np.bincount(numbers) if len(numbers) else np.zeros(0, dtype=np.int64)
    several = sizes[sizes > 1]
    return {"groups": len(several), "images": int(several.sum())}


def count_conflicts(exact: NDArray[np.int64], labels: Sequence[str]) -> int:
    """Return how many sets of pixel-identical images carry more than one label."""
    seen = set(zip(exact.tolist(), labels, strict=True))
    return sum(count > 1 for count in Counter(group for group, _ in seen).values())


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
