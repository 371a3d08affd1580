"""Sheets of a data set for a person to look at: some slices of every class, or their stages."""

import io
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
from matplotlib.figure import Figure
from numpy.typing import NDArray

from btray.config import Config
from btray.core.images import decode
from btray.core.preprocess import stages
from btray.data.dataset import SPLITS, Dataset
from btray.errors import UserError

_COLUMNS: Final = ["label", "split", "plane", "sequence", "source"]
_INCHES: Final = 1.8
_DPI: Final = 110
_AUGMENTED: Final = 3
"""Augmented versions of a slice shown."""

Tile = tuple[str, NDArray[np.uint8]]
"""A title and grey pixels [height, width]."""


def contact_sheet(
    dataset: Dataset, split: str | None = None, per_class: int = 8, seed: int = 0
) -> bytes:
    """Return a PNG with `per_class` seeded random slices of each class, a class a row.

    Slices come from one split, or from train, validation and test together.

    Raises:
        UserError: no such split in the data set, or an impossible number.

    """
    lines: dict[str, list[Tile]] = {name: [] for name in dataset.manifest.class_names}
    for row, data in _picked(dataset, split, per_class, seed):
        details = ", ".join(filter(None, (row["plane"], row["sequence"], row["split"])))
        lines[row["label"]].append((f"{row['label']}\n{details}", decode(data)))
    return draw_sheet(list(lines.values()))


def stage_sheet(
    dataset: Dataset, config: Config, split: str | None = None, per_class: int = 1, seed: int = 0
) -> bytes:
    """Return a PNG with a line a slice: as stored, after each stage, normalised, augmented.

    Raises as `contact_sheet`.
    """
    lines = []
    for row, data in _picked(dataset, split, per_class, seed):
        image = decode(data)
        lines.append([(f"{row['label']}\nas stored", image), *_stage_tiles(image, config)])
    return draw_sheet(lines)


def _stage_tiles(image: NDArray[np.uint8], config: Config) -> Iterator[Tile]:
    import torch  # seconds, and a contact sheet needs none of it

    from btray.core.augment import augment, batch_generator
    from btray.core.tensors import normalise, to_unit

    square = image
    for name, square in stages(image, config.image):
        yield f"{name}\n{square.shape[1]} x {square.shape[0]}", square
    unit = to_unit(torch.from_numpy(square[None]))
    yield _normalised_tile(normalise(unit.clone(), config.image)[0, 0].numpy())
    for step in range(_AUGMENTED):
        changed = augment(unit.clone(), config.augment, batch_generator(config.seed, 0, 0, step))
        pixels = (changed[0, 0].clamp(0, 1) * 255).round().byte().numpy()
        yield f"augmented\ndraw {step + 1}", pixels


def _normalised_tile(values: NDArray[np.float32]) -> Tile:
    low, high = float(values.min()), float(values.max())
    pixels = np.rint((values - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    return f"normalised\n{low:.2f} to {high:.2f}", pixels


def _picked(
    dataset: Dataset, split: str | None, per_class: int, seed: int
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield chosen rows and their encoded images, class by class."""
    if not 1 <= per_class <= 50:
        raise UserError(f"--per-class {per_class}: give a number from 1 to 50")
    if split is not None and not dataset.count(split):
        raise UserError(
            f"{dataset.uri}: no rows in split {split!r}; it has "
            f"{', '.join(sorted(dataset.manifest.counts))}"
        )
    rows = choose(dataset.table(_COLUMNS), dataset.manifest.class_names, split, per_class, seed)
    images = dataset.images("source", rows["source"].to_pylist())
    for row in rows.to_pylist():
        yield row, images[row["source"]]


def choose(
    rows: pa.Table, class_names: tuple[str, ...], split: str | None, per_class: int, seed: int
) -> pa.Table:
    """Return up to `per_class` rows of each class, in stored order within a class."""
    splits = (split,) if split else SPLITS
    wanted = pyarrow.compute.is_in(rows["split"], pa.array(splits)).to_numpy()
    labels = np.array(rows["label"].to_pylist())
    rng = np.random.default_rng(seed)
    picked = []
    for name in class_names:
        candidates = np.flatnonzero(wanted & (labels == name))
        size = min(per_class, len(candidates))
        picked.append(np.sort(rng.choice(candidates, size, replace=False)))
    return rows.take(pa.array(np.concatenate(picked)))


def draw_sheet(lines: Sequence[Sequence[Tile]]) -> bytes:
    """Return a PNG with lines of titled images, all in the grey values they have."""
    columns = max(len(line) for line in lines)
    size = (_INCHES * columns, _INCHES * 1.2 * len(lines))
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes_line, line in zip(grid, lines, strict=True):
        for axes, (title, pixels) in zip(axes_line, line, strict=False):
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            axes.set_title(title, fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
