"""What a cross-validation tells of its labels: those that are probably wrong."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.csv

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
    from btray.data.audit.label_errors import find_label_errors  # scikit-learn: a second

    labels = answers["label"].to_pylist()
    probabilities = np.array(answers["probabilities"].to_pylist())
    errors = find_label_errors(probabilities, labels, class_names)
    return (
        answers.select(["sha256", "fold", "label"])
        .take(pa.array([error.row for error in errors], pa.int64()))
        .append_column("suggested", pa.array([error.suggested for error in errors], pa.string()))
        .append_column("probability", pa.array([error.given for error in errors], pa.float64()))
        .append_column(
            "probability_suggested", pa.array([error.confidence for error in errors], pa.float64())
        )
    )


def _draw(dataset: Dataset, doubts: pa.Table) -> bytes:
    from btray.data.sheet import draw_sheet  # matplotlib: seconds

    rows = doubts.to_pylist()
    images = dataset.images("sha256", [row["sha256"] for row in rows])
    tiles = [
        (f"{row['label']}?\n{row['suggested']}: {row['sha256'][:8]}", decode(images[row["sha256"]]))
        for row in rows
    ]
    return draw_sheet([tiles[at : at + _ACROSS] for at in range(0, len(tiles), _ACROSS)])
