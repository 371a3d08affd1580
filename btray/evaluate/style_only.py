"""What style alone, the head left out, says of the classes: the score to hold others against."""

from typing import Final

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from btray import cluster
from btray.core.head import head_box
from btray.core.images import decode
from btray.core.metrics import Scores
from btray.data.audit.features import style
from btray.data.context import data_context
from btray.data.dataset import Dataset

_LEARNED: Final = 3000
"""Most rows of train that are learned from."""
_PORTION: Final = 64


def score_style(dataset: Dataset, split: str, seed: int = 0) -> Scores | None:
    """Predict the classes of a split from style, by a logistic regression learned on train.

    The features are those of the audit's shortcut score: size, border, colour mode, compression,
    background. Returns `accuracy` and `chance`, the share of the commonest class; None when
    train has fewer than two classes.
    """
    cluster.connect()
    names, labels = (dataset.table([key], "train")[key].to_pylist() for key in ("sha256", "label"))
    if len(set(labels)) < 2:
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(len(names))[:_LEARNED]).tolist()
    features = _features(dataset, [names[row] for row in chosen])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(features, [labels[row] for row in chosen])
    rows = dataset.table(["sha256", "label"], split).to_pydict()
    truth = np.array(rows["label"])
    said = model.predict(_features(dataset, rows["sha256"]))
    return {
        "accuracy": float((said == truth).mean()),
        "chance": float(np.unique(truth, return_counts=True)[1].max() / len(truth)),
    }


def _features(dataset: Dataset, names: list[str]) -> NDArray[np.float32]:
    stored = dataset.images("sha256", names)
    portions = [names[start : start + _PORTION] for start in range(0, len(names), _PORTION)]
    tables = [pa.table({"image": [stored[name] for name in some]}) for some in portions]
    with data_context():
        found = ray.data.from_arrow(tables).map_batches(
            measure_style,
            batch_size=None,
            batch_format="pyarrow",
        )
        batch: pa.Table
        rows: list[list[float]] = []
        for batch in found.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows += batch["style"].to_pylist()
    return np.array(rows, dtype=np.float32)


def measure_style(table: pa.Table) -> pa.Table:
    """Return `style`, a list a row, of a table of encoded images."""
    rows = []
    for data in table["image"].to_pylist():
        pixels = decode(data)
        rows.append(style(data, pixels, head_box(pixels)))
    return pa.table({"style": rows})
