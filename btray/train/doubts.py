"""What a cross-validation tells of its labels: those that are probably wrong."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.csv

from btray.core.doubts import doubtful_labels
from btray.core.images import decode
from btray.data.dataset import Dataset
from btray.train.storage import RunFolder

TABLE: Final = "doubtful_labels.csv"
SHEET: Final = "doubtful_labels.png"
_DRAWN: Final = 40
_ACROSS: Final = 8


def write_doubts(dataset: Dataset, answers: pa.Table, folder: RunFolder) -> int:
    """Write the table of doubtful labels, worst first, draw the first; return how many.

    Args:
        dataset: where the images are.
        answers: `sha256`, `fold`, `label` and out-of-fold `probabilities` of its rows.
        folder: where to write; a picture only if there is a doubt.

    """
    doubts = _doubts(answers, dataset.manifest.class_names)
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(doubts, sink)
    folder.write(TABLE, sink.getvalue().to_pybytes())
    if doubts.num_rows:
        folder.write(SHEET, _draw(dataset, doubts.slice(0, _DRAWN)))
    return int(doubts.num_rows)


def _doubts(answers: pa.Table, class_names: tuple[str, ...]) -> pa.Table:
    labels = np.array([class_names.index(label) for label in answers["label"].to_pylist()])
    probabilities = np.array(answers["probabilities"].to_pylist())
    rows, instead = doubtful_labels(labels, probabilities)
    other = pa.array([class_names[number] for number in instead], pa.string())
    return (
        answers.select(["sha256", "fold", "label"])
        .take(pa.array(rows))
        .append_column("instead", other)
        .append_column("probability", pa.array(probabilities[rows, labels[rows]]))
        .append_column("probability_instead", pa.array(probabilities[rows, instead]))
    )


def _draw(dataset: Dataset, doubts: pa.Table) -> bytes:
    from btray.data.sheet import draw_sheet  # matplotlib: seconds

    rows = doubts.to_pylist()
    images = dataset.images("sha256", [row["sha256"] for row in rows])
    tiles = [
        (f"{row['label']}?\n{row['instead']}: {row['sha256'][:8]}", decode(images[row["sha256"]]))
        for row in rows
    ]
    return draw_sheet([tiles[at : at + _ACROSS] for at in range(0, len(tiles), _ACROSS)])
