"""Does btray find copies, and copies alone? On made copies of real slices.

Usage: python benchmarks/near_duplicates.py [SRC] [--originals 400] [--roc FILE.png] [--seed 0]

SRC is a folder with images; by default the real slices in BTRAY_DATA or ../shared/data.
All images are grouped first, as the import groups them. From different groups come the
originals; a copy of each is made in every way below. Originals and copies of one kind are
compared as the import compares: a pair of an original and its own copy is to be found, any
other pair is not.
"""

import argparse
import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from btray.cluster import local_cores
from btray.core.images import SUFFIXES, decode
from btray.data.duplicates import (
    MIN_SIMILARITY,
    Measures,
    compare,
    count_groups,
    find_duplicates,
    shortlist,
)
from btray.data.head import frame, thumbnail

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels, np.random.Generator], Pixels]


def re_encoded(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """JPEG of quality 25 to 90."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=int(rng.integers(25, 91)))
    return decode(buffer.getvalue())


def resized(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """0.6 to 1.8 times as large, each side by its own."""
    height, width = pixels.shape
    size = (round(width * rng.uniform(0.6, 1.8)), round(height * rng.uniform(0.6, 1.8)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def letterboxed(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A black border of up to 40 % more."""
    sides = [
        (rng.integers(0, side // 5 + 1), rng.integers(0, side // 5 + 1)) for side in pixels.shape
    ]
    return np.pad(pixels, sides)


def border_cropped(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Cut to what is brighter than a tenth."""
    del rng
    bright = pixels > 0.1 * np.percentile(pixels, 99)
    rows, columns = (np.flatnonzero(bright.mean(axis=axis) > 0.02) for axis in (1, 0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def cropped(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The border, and 3 to 15 % of the head's sides, anywhere."""
    head = border_cropped(pixels, rng)
    share = rng.uniform(0.85, 0.97)
    height, width = (round(side * share) for side in head.shape)
    top = rng.integers(0, head.shape[0] - height + 1)
    left = rng.integers(0, head.shape[1] - width + 1)
    return head[top : top + height, left : left + width]


def toned(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Gamma 0.7 to 1.4, contrast 0.7 to 1.4, brightness -15 to 25."""
    values = 255 * (pixels / 255) ** rng.uniform(0.7, 1.4)
    changed = values * rng.uniform(0.7, 1.4) + rng.uniform(-15, 25)
    return np.clip(changed, 0, 255).astype(np.uint8)


def turned(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """One of the seven flips and quarter turns."""
    kind = int(rng.integers(1, 8))
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if kind & 4 else pixels, kind & 3))


def rotated(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """By 3 to 12 degrees either way."""
    angle = rng.uniform(3, 12) * rng.choice([-1, 1])
    return np.asarray(Image.fromarray(pixels).rotate(angle, Image.Resampling.BICUBIC))


def combined(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Three of the others, then a JPEG."""
    changes = (turned, rotated, cropped, toned, resized)
    for choice in rng.permutation(len(changes))[:3]:
        pixels = changes[choice](pixels, rng)
    return re_encoded(pixels, rng)


CHANGES: tuple[Change, ...] = (
    re_encoded,
    resized,
    letterboxed,
    border_cropped,
    cropped,
    toned,
    turned,
    rotated,
    combined,
)


def main() -> None:
    """Measure, print the table, draw the ROC, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("BTRAY_DATA") or "../shared/data") / "brain-tumor-mri"
    parser.add_argument("source", nargs="?", type=Path, default=default)
    parser.add_argument("--originals", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--roc", type=Path)
    options = parser.parse_args()
    files = sorted(path for path in options.source.rglob("*") if path.suffix.lower() in SUFFIXES)
    images = [decode(path.read_bytes()) for path in files]
    figures, originals = group(images, options.originals, options.seed)
    scores = {change.__name__: measure(originals, change, options.seed) for change in CHANGES}
    figures |= {"cores": local_cores(), "originals": len(originals)}
    figures |= report(scores)
    if options.roc:
        draw(scores, options.roc)
    print(json.dumps(figures))


def group(images: list[Pixels], count: int, seed: int) -> tuple[dict[str, float], list[Pixels]]:
    """Group all images; return what came out, and originals of different groups."""
    wall, cpu = time.perf_counter(), time.process_time()
    measures = Measures(
        [hashlib.sha256(f"{i.shape}".encode() + i.tobytes()).hexdigest() for i in images],
        np.stack([thumbnail(image) for image in images]),
        np.stack([frame(image) for image in images]),
    )
    found = find_duplicates(measures, [None] * len(images))
    exact, near = count_groups(found.exact), count_groups(found.near)
    figures = {
        "images": len(images),
        "exact_groups": exact["groups"],
        "exact_images": exact["images"],
        "near_groups": near["groups"],
        "near_images": near["images"],
        "largest_near_group": int(np.bincount(found.near).max()),
        "grouping_seconds": round(time.perf_counter() - wall, 1),
        "grouping_cpu_seconds": round(time.process_time() - cpu, 1),
    }
    _, first = np.unique(found.near, return_index=True)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(first, min(count, len(first)), replace=False)
    return figures, [images[row] for row in chosen]


def measure(originals: list[Pixels], change: Change, seed: int) -> tuple[NDArray, NDArray, int]:
    """Return similarities of the pairs to be found, of the others looked at, and their number."""
    rng = np.random.default_rng(seed)
    n = len(originals)
    images = [*originals, *(change(image, rng) for image in originals)]
    thumbnails = np.stack([thumbnail(image) for image in images])
    candidates = shortlist(thumbnails)
    similar = compare(thumbnails, candidates)
    low, high = np.sort(candidates.pairs, axis=1).T
    own = high == low + n
    right = np.full(n, -1.0)
    right[low[own]] = similar[own]
    return right, similar[~own], 2 * n * (2 * n - 1) // 2 - n


def report(scores: dict[str, tuple[NDArray, NDArray, int]]) -> dict[str, float]:
    """Print precision and recall of every kind; return them by name."""
    everything = (
        np.concatenate([right for right, _, _ in scores.values()]),
        np.concatenate([wrong for _, wrong, _ in scores.values()]),
        sum(pairs for _, _, pairs in scores.values()),
    )
    figures: dict[str, float] = {}
    print(f"{'copies':16}{'recall':>10}{'precision':>11}{'others flagged':>18}")
    for name, (right, wrong, pairs) in {**scores, "all": everything}.items():
        found, flagged = int((right >= MIN_SIMILARITY).sum()), int((wrong >= MIN_SIMILARITY).sum())
        prefix = "" if name == "all" else f"{name}_"
        figures[f"{prefix}recall"] = round(found / len(right), 4)
        figures[f"{prefix}precision"] = round(found / max(1, found + flagged), 4)
        figures[f"{prefix}different_flagged"] = flagged / pairs
        print(
            f"{name:16}{found / len(right):>10.4f}{found / max(1, found + flagged):>11.4f}"
            f"{flagged:>8} of {pairs:,}"
        )
    return figures


def draw(scores: dict[str, tuple[NDArray, NDArray, int]], path: Path) -> None:
    """Draw the ROC of every kind of copy: all thresholds, the chosen one marked."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    thresholds = np.linspace(1, 0, 501)
    for name, (right, wrong, pairs) in scores.items():
        rates = [((wrong >= t).sum() / pairs, (right >= t).mean()) for t in thresholds]
        false, true = np.array(rates).T
        (line,) = axes.plot(np.maximum(false, 1e-7), true, label=name.replace("_", " "))
        at = int(np.argmin(np.abs(thresholds - MIN_SIMILARITY)))
        axes.plot(max(false[at], 1e-7), true[at], "o", color=line.get_color())
    axes.axvline(0.01, linestyle=":", color="grey")
    axes.set(
        xscale="log",
        xlim=(8e-8, 1),
        ylim=(0.8, 1.005),
        xlabel="share of different pairs flagged (1e-7: none)",
        ylabel="share of copies found",
        title=f"Near duplicates; dots: similarity {MIN_SIMILARITY:g}, as btray decides",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
