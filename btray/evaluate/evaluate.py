"""A bundle against one split of a data set, over Ray Data, every row counted once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data import TaskPoolStrategy

from btray import cluster
from btray.core.bundle import Bundle
from btray.core.calibration import calibrated
from btray.core.metrics import Scores, evaluate_probabilities, roc_points
from btray.core.predictor import Predictor
from btray.data.dataset import Dataset
from btray.data.decoding import check_rows, decoded, pixels, readable, tasks
from btray.errors import UserError

BATCH: Final = 64
"""Images in one forward pass."""

Progress = Callable[[int, int], None]
"""Told how many rows of how many are done."""


@dataclass(frozen=True)
class Evaluation:
    """The answers to all rows of a split, and what they score."""

    split: str
    class_names: tuple[str, ...]
    sha256: list[str]
    """Of every row's encoded bytes [rows]; the rows' names across files and formats."""
    labels: NDArray[np.int64]
    """True classes [rows], as positions in `class_names`."""
    logits: NDArray[np.float32]
    """[rows, classes]."""
    probabilities: NDArray[np.float64]
    """Calibrated [rows, classes]."""
    metrics: Scores
    """What `metrics.json` holds."""


def evaluate_bundle(
    bundle: Bundle, dataset: Dataset, split: str, progress: Progress | None = None
) -> Evaluation:
    """Answer every row of a split and score the answers.

    Raises:
        UserError: an empty split, or classes the bundle does not know.

    """
    _check(bundle, dataset, split)
    cluster.connect()
    total = dataset.count(split)
    tables = []
    with readable(dataset):
        for table in _scored(bundle, dataset, split):
            tables.append(table)
            if progress is not None:
                progress(sum(done.num_rows for done in tables), total)
        check_rows(dataset, (split,), sum(table.num_rows for table in tables))
    return _evaluation(bundle, dataset, split, pa.concat_tables(tables))


def _check(bundle: Bundle, dataset: Dataset, split: str) -> None:
    if not dataset.count(split):
        raise UserError(
            f"{dataset.uri}: no rows in split {split!r}; it has "
            f"{', '.join(sorted(dataset.manifest.counts))}"
        )
    unknown = set(dataset.manifest.counts[split]) - set(bundle.card.class_names)
    if unknown:
        raise UserError(
            f"{dataset.uri}: classes the bundle was not trained on: {', '.join(sorted(unknown))}; "
            f"it knows {', '.join(bundle.card.class_names)}"
        )


def _scored(bundle: Bundle, dataset: Dataset, split: str) -> Iterator[pa.Table]:
    """Yield tables of `sha256`, `label` and `logits` (a list a row), in stored order."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cores = min(cluster.usable_cores(), tasks(dataset))
    rows = decoded(dataset, (split,), bundle.card.image, cores).map_batches(
        score,  # type: ignore[arg-type]  # a batch is an Arrow table here
        batch_size=BATCH,
        batch_format="pyarrow",
        fn_kwargs={"bundle": bundle},
        compute=TaskPoolStrategy(size=min(gpus, tasks(dataset)) if gpus else cores),
        num_gpus=1 if gpus else 0,
    )
    yield from rows.iter_batches(batch_size=None, batch_format="pyarrow")


_predictors: dict[str, Predictor] = {}
"""The network of the bundle that this process last scored with, by version."""


def score(table: pa.Table, bundle: Bundle) -> pa.Table:
    """Add a bundle's logits to a table of decoded rows."""
    if bundle.version not in _predictors:
        torch.set_num_threads(1)
        _predictors.clear()
        _predictors[bundle.version] = Predictor(bundle)
    squares = pixels(table["square"].combine_chunks(), bundle.card.image.size)
    logits = _predictors[bundle.version].logits(np.array(squares))
    return pa.table(
        {"sha256": table["sha256"], "label": table["label"], "logits": logits.tolist()},
        schema=pa.schema(
            [
                ("sha256", pa.string()),
                ("label", pa.string()),
                ("logits", pa.list_(pa.float32())),
            ]
        ),
    )


def _evaluation(bundle: Bundle, dataset: Dataset, split: str, rows: pa.Table) -> Evaluation:
    names = bundle.card.class_names
    labels = np.array([names.index(label) for label in rows["label"].to_pylist()], dtype=np.int64)
    logits = np.array(rows["logits"].to_pylist(), dtype=np.float32)
    probabilities = calibrated(logits, bundle.card.calibration)
    metrics: dict[str, Any] = {
        **evaluate_probabilities(labels, probabilities, names),
        "roc": roc_points(labels, probabilities, names),
        "split": split,
        "dataset": {
            "content_hash": dataset.manifest.content_hash,
            "source": dataset.manifest.source,
            "same_as_trained_on": _same(bundle, dataset),
        },
        "model": {"name": bundle.card.name, "version": bundle.version},
    }
    return Evaluation(
        split, names, rows["sha256"].to_pylist(), labels, logits, probabilities, metrics
    )


def _same(bundle: Bundle, dataset: Dataset) -> bool:
    return bundle.card.provenance.data_hash == dataset.manifest.content_hash
