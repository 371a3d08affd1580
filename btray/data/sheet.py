"""A contact sheet of a data set: some slices of every class, for a person to look at."""

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
from matplotlib.figure import Figure

from btray.core.images import decode
from btray.data.dataset import SPLITS, Dataset
from btray.errors import UserError

_COLUMNS: Final = ["label", "split", "plane", "sequence", "source"]
_INCHES: Final = 1.6
_DPI: Final = 110

Tile = tuple[str, bytes]
"""A title and an encoded image."""


def contact_sheet(
    dataset: Dataset, split: str | None = None, per_class: int = 8, seed: int = 0
) -> bytes:
    """Return a PNG with `per_class` seeded random slices of each class, a class a row.

    Slices come from one split, or from train, validation and test together.

    Raises:
        UserError: no such split in the data set, or an impossible number.

    """
    if not 1 <= per_class <= 50:
        raise UserError(f"--per-class {per_class}: give a number from 1 to 50")
    if split is not None and not dataset.count(split):
        raise UserError(
            f"{dataset.uri}: no rows in split {split!r}; it has "
            f"{', '.join(sorted(dataset.manifest.counts))}"
        )
    rows = choose(dataset.table(_COLUMNS), dataset.manifest.class_names, split, per_class, seed)
    images = dataset.images("source", rows["source"].to_pylist())
    lines: dict[str, list[Tile]] = {name: [] for name in dataset.manifest.class_names}
    for row in rows.to_pylist():
        details = ", ".join(filter(None, (row["plane"], row["sequence"], row["split"])))
        lines[row["label"]].append((f"{row['label']}\n{details}", images[row["source"]]))
    return draw_sheet(list(lines.values()))


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
        for axes, (title, data) in zip(axes_line, line, strict=False):
            axes.imshow(decode(data), cmap="gray", vmin=0, vmax=255)
            axes.set_title(title, fontsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
