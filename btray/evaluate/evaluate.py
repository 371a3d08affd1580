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
from btray.core.allocator import keep_freed_memory
from btray.core.bundle import Bundle
from btray.core.calibration import calibrated
from btray.core.fitting import group_numbers
from btray.core.metrics import Scores, evaluate_probabilities, roc_points
from btray.core.predictor import Predictor
from btray.data.dataset import Dataset
from btray.data.decoding import check_rows, decoded, pixels, readable
from btray.data.folds import IN_FOLDS
from btray.errors import UserError

BATCH: Final = 64
"""Images in one forward pass."""
_ROWS_PER_PROCESS: Final = 128
"""At least: a further process loads torch first, some seconds."""
_TASKS_PER_PROCESS: Final = 8
"""For balance: a split's rows lie anywhere."""

ABOUT: Final = (
    "sha256",
    "group_id",
    "patient_id",
    "series_id",
    "source",
    "height",
    "width",
    "mode",
    "plane",
    "sequence",
    "field_strength",
    "vendor",
    "sex",
    "age",
)
"""Columns of the data set that an evaluation keeps."""

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
    strangeness: NDArray[np.float64]
    """[rows]; see `btray.core.predictor.Prediction.ood_score`."""
    features: NDArray[np.float32] | None
    """What the classifier was given [rows, features], where it was asked for and there is such."""
    about: dict[str, list[Any]]
    """What the data set tells of every row, by its columns `ABOUT`."""
    metrics: Scores
    """What `metrics.json` holds."""

    @property
    def groups(self) -> NDArray[np.int64]:
        """Return the group of every row [rows], as a number."""
        return group_numbers(self.about["group_id"])


def evaluate_bundle(
    bundle: Bundle,
    dataset: Dataset,
    split: str,
    progress: Progress | None = None,
    features: bool = False,
) -> Evaluation:
    """Answer every row of a split and score the answers; keep the `features` if asked.

    Train and validation of a bundle of a cross-validation are those of its own fold.

    Raises:
        UserError: an empty split, classes the bundle does not know, or an ensemble over folds
            whose networks were trained on the split's rows.

    """
    dataset = _seen_by(bundle, dataset, split)
    _check(bundle, dataset, split)
    cluster.connect()
    total = dataset.count(split)
    tables = []
    with readable(dataset):
        for table in _scored(bundle, dataset, split, features):
            tables.append(table)
            if progress is not None:
                progress(sum(done.num_rows for done in tables), total)
        check_rows(dataset, (split,), sum(table.num_rows for table in tables))
    return _evaluation(bundle, dataset, split, pa.concat_tables(tables))


def _seen_by(bundle: Bundle, dataset: Dataset, split: str) -> Dataset:
    """Return the data set with the splits the bundle was trained with."""
    folds = bundle.card.folds
    if bundle.card.provenance.refit and _same(bundle, dataset) and split == "validation":
        raise UserError(
            f"{bundle.uri}: it was trained on validation too (a refit); evaluate it on test"
        )
    if not _same(bundle, dataset) or split not in IN_FOLDS or folds == (None,):
        return dataset
    if len(folds) > 1:
        raise UserError(
            f"{bundle.uri}: some of its networks were trained on rows of {split}, each on all "
            "folds but one; evaluate it on test"
        )
    if bundle.card.provenance.assignment_hash != dataset.manifest.split.assignment_hash:
        raise UserError(
            f"{dataset.uri}: its folds are not those {bundle.uri} was trained with; evaluate on "
            "test, or on the data set it was trained on"
        )
    return dataset if folds[0] is None else dataset.with_fold(folds[0])


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


def _scored(bundle: Bundle, dataset: Dataset, split: str, features: bool) -> Iterator[pa.Table]:
    """Yield tables of what `score` returns, in stored order."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    most = most_processes(dataset, split)
    cores = min(cluster.usable_cores(), most)
    blocks = cores * _TASKS_PER_PROCESS if cores > 1 else 1
    rows = decoded(dataset, (split,), bundle.card.image, cores, blocks=blocks).map_batches(
        score,  # type: ignore[arg-type]  # a batch is an Arrow table here
        batch_size=BATCH,
        batch_format="pyarrow",
        fn_kwargs={"bundle": bundle, "features": features},
        compute=TaskPoolStrategy(size=min(gpus, most) if gpus else cores),
        num_gpus=1 if gpus else 0,
    )
    yield from rows.iter_batches(batch_size=None, batch_format="pyarrow")


def most_processes(dataset: Dataset, split: str) -> int:
    """Return how many processes a split's rows are worth loading torch in."""
    return max(1, dataset.count(split) // _ROWS_PER_PROCESS)


_predictors: dict[str, Predictor] = {}
"""The network of the bundle that this process last scored with, by version."""


def predictor_of(bundle: Bundle, threads: int | None = None) -> Predictor:
    """Return a bundle's predictor, which this process keeps until it is asked for another's.

    `threads` is for a process that does nothing else; it keeps the memory it frees, too.
    """
    if bundle.version not in _predictors:
        if threads is not None:
            torch.set_num_threads(threads)
            keep_freed_memory()
        _predictors.clear()
        _predictors[bundle.version] = Predictor(bundle)
    return _predictors[bundle.version]


def score(table: pa.Table, bundle: Bundle, features: bool = False) -> pa.Table:
    """Return `sha256`, `label`, `logits`, `strangeness` and, if asked, `features` of decoded rows.

    `logits` and `features` are a list a row; features are null for a network without any.
    """
    squares = pixels(table["square"].combine_chunks(), bundle.card.image.size)
    outputs = predictor_of(bundle, threads=1).outputs(np.array(squares))
    found = outputs.features if features else None
    return pa.table(
        {
            "sha256": table["sha256"],
            "label": table["label"],
            "logits": list(outputs.logits),
            "strangeness": outputs.strangeness,
            "features": pa.nulls(len(squares)) if found is None else list(found),
        },
        schema=_ANSWERS,
    )


_ANSWERS: Final = pa.schema(
    [
        ("sha256", pa.string()),
        ("label", pa.string()),
        ("logits", pa.list_(pa.float32())),
        ("strangeness", pa.float64()),
        ("features", pa.list_(pa.float32())),
    ]
)


def _evaluation(bundle: Bundle, dataset: Dataset, split: str, rows: pa.Table) -> Evaluation:
    names = bundle.card.class_names
    labels = np.array([names.index(label) for label in rows["label"].to_pylist()], dtype=np.int64)
    logits = np.array(rows["logits"].to_pylist(), dtype=np.float32)
    probabilities = calibrated(logits, bundle.card.calibration)
    about = dataset.table(list(ABOUT), split).to_pydict()
    if about["sha256"] != rows["sha256"].to_pylist():
        raise RuntimeError(f"{dataset.uri}: rows of {split} came in another order than stored")
    found = rows["features"]
    metrics: dict[str, Any] = {
        **evaluate_probabilities(labels, probabilities, names),
        "roc": roc_points(labels, probabilities, names),
        "split": split,
        "dataset": {
            "content_hash": dataset.manifest.content_hash,
            "source": dataset.manifest.source,
            "fold": dataset.fold,
            "same_as_trained_on": _same(bundle, dataset),
        },
        "model": {"name": bundle.card.name, "version": bundle.version},
    }
    return Evaluation(
        split=split,
        class_names=names,
        sha256=about["sha256"],
        labels=labels,
        logits=logits,
        probabilities=probabilities,
        strangeness=rows["strangeness"].to_numpy(),
        features=None if found.null_count else np.array(found.to_pylist(), dtype=np.float32),
        about=about,
        metrics=metrics,
    )


def _same(bundle: Bundle, dataset: Dataset) -> bool:
    return bundle.card.provenance.data_hash == dataset.manifest.content_hash
