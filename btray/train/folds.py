"""Cross-validation: the same `fit` once a fold, as many at once as the cluster holds."""

import json
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import ray
from numpy.typing import NDArray
from pydantic import ByteSize
from ray.exceptions import RayError
from ray.train import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from safetensors.numpy import load
from scipy.special import log_softmax

from btray import cluster
from btray.config import Config
from btray.core import files
from btray.core.layout import CARD
from btray.core.layout import FOLDER as BUNDLE
from btray.data.cache import cache_limit
from btray.data.dataset import Dataset
from btray.errors import UserError
from btray.train.board import Update
from btray.train.doubts import write_doubts
from btray.train.failures import one_line
from btray.train.inputs import open_folds, with_fold
from btray.train.learner import VALIDATION
from btray.train.plan import place, spread
from btray.train.progress import Display, follow
from btray.train.storage import CONFIG, RunFolder
from btray.train.trainer import Stopped, fit, open_board, resume, run_log, stopped_by_sigterm

MARK: Final = "cross_validation.json"
"""File of a run that is a cross-validation: how many folds, and a hash of their rows."""
RESULT: Final = "folds.json"
ROWS: Final = "out_of_fold.parquet"
SCORES: Final = ("accuracy", "macro_f1", "macro_auroc", "loss")
_STOPPED: Final = "stopped"
ENVIRONMENT: Final = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_CHDIR_TO_TRIAL_DIR")
"""What `connect` sets for the process that trains, which here is a task of the cluster."""


class FoldsFailedError(Exception):
    """Some folds did not end; the others are finished and kept."""


@dataclass(frozen=True)
class CrossValidation:
    """A finished cross-validation."""

    folder: RunFolder
    """Where it is; fold k's run is the folder `fold-k` inside."""
    bundles: list[str]
    """Every fold's bundle."""
    histories: list[list[dict[str, float]]]
    """Every fold's metrics of its epochs."""
    scores: dict[str, Any]
    """What `folds.json` holds."""


def fit_folds(config: Config, folds: int, display: Display | None = None) -> CrossValidation:
    """Train once a fold, on all other folds, and score every row outside test once.

    SIGTERM in the main thread lets the folds make checkpoints and end.

    Raises:
        UserError: the data set has other folds; else as `fit`.
        FoldsFailedError: some folds failed; the others are finished.
        Stopped: by SIGTERM.

    """
    dataset = open_folds(config, folds)
    cluster.connect()
    place(config.train)
    mark = {"folds": folds, "rows": _identity(dataset)}
    folder, settled = RunFolder.create(config, {MARK: json.dumps(mark)})
    return _run(settled, dataset, folder, folds, display)


def resume_folds(uri: str, display: Display | None = None) -> CrossValidation:
    """Go on with the folds of a cross-validation that are not finished.

    Raises:
        UserError: none there, a finished one, or its data set has changed; else as `fit`.
        FoldsFailedError: some folds failed again.

    """
    folder, config, _ = RunFolder.reopen(uri)
    mark = json.loads(folder.read(MARK) or b"{}")
    if not mark:
        raise UserError(f"{uri}: no cross-validation (no {MARK})")
    if folder.exists(RESULT):
        raise UserError(f"{uri}: this cross-validation is finished; see {uri}/{RESULT}")
    dataset = open_folds(config, mark["folds"])
    if _identity(dataset) != mark["rows"]:
        raise UserError(
            f"{dataset.uri}: not the data set this cross-validation began with: rows may now "
            "stand in another fold; start a new one"
        )
    cluster.connect()
    return _run(config, dataset, folder, mark["folds"], display)


def is_cross_validation(uri: str) -> bool:
    """Say whether a run is a cross-validation."""
    return files.exists(files.join(uri, MARK))


def _identity(dataset: Dataset) -> str:
    return f"{dataset.order_hash()}-{dataset.manifest.split.assignment_hash}"


def _run(
    config: Config, dataset: Dataset, folder: RunFolder, folds: int, display: Display | None
) -> CrossValidation:
    if display is not None:
        display.show(Update(kind="run", uri=folder.uri))
    slots, cpus = spread(config.train, folds)
    configs = {fold: _of_fold(config, folder, fold, slots, cpus) for fold in range(folds)}
    board = open_board(0)
    with run_log(folder), follow(board, display):
        failed = _train_all(configs, slots, board)
    if _STOPPED in failed.values():
        raise Stopped(folder.uri)
    if failed:
        reasons = "; ".join(f"fold {fold}: {failed[fold]}" for fold in sorted(failed))
        raise FoldsFailedError(f"{len(failed)} of {folds} folds failed: {reasons}")
    return _finish(dataset, folder, folds)


def _of_fold(config: Config, folder: RunFolder, fold: int, slots: int, cpus: int) -> Config:
    """Return the configuration of one fold's run; runs at once share the object store."""
    run = config.run.model_copy(update={"storage": folder.uri, "name": f"fold-{fold}"})
    own = with_fold(config, fold).model_copy(update={"run": run})
    if slots == 1:
        return own
    limit = ByteSize(cache_limit(config) // slots)
    data = own.data.model_copy(update={"cache_limit": limit})
    train = own.train.model_copy(update={"cpus_per_worker": cpus})
    return own.model_copy(update={"data": data, "train": train})


def _train_all(
    configs: dict[int, Config],
    slots: int,
    board: Any,  # noqa: ANN401 - a Ray actor handle
) -> dict[int, str]:
    """Train every fold, so many at once; return why some are not finished."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    task = _train_fold.options(
        scheduling_strategy=here, runtime_env={"env_vars": environment} if environment else None
    )
    boards = {fold: open_board(one.train.worker_range[1]) for fold, one in configs.items()}
    waiting, running, failed = deque(configs), dict[Any, int](), dict[int, str]()
    try:
        with stopped_by_sigterm(partial(_stop, list(boards.values()))) as told:
            while waiting or running:
                while waiting and len(running) < slots:
                    fold = waiting.popleft()
                    if told.is_set():
                        failed[fold] = _STOPPED
                    else:
                        running[task.remote(configs[fold], board, boards[fold])] = fold
                if not running:
                    break
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                fold = running.pop(done)
                try:
                    reason = ray.get(done)
                except RayError as error:
                    reason = f"its process died ({type(error).__name__})"
                if reason is not None:
                    failed[fold] = reason
    finally:
        for task_left in running:
            ray.cancel(task_left, force=True)
    return failed


def _stop(boards: list[Any]) -> None:
    ray.get([board.stop.remote() for board in boards])


@ray.remote(num_cpus=0, max_retries=0)
def _train_fold(config: Config, board: Any, own: Any) -> str | None:  # noqa: ANN401 - Ray actors
    """Train one fold, or go on with it unless it is finished; return why it is not then.

    In a process of its own: Ray Train wants a main thread for each run, and every run a log.
    """
    folder = RunFolder.locate(files.join(config.run.storage, config.run.name or ""))
    if folder.exists(f"{BUNDLE}/{CARD}"):
        return None
    display = _Relay(board, config.data.fold or 0)
    try:
        if folder.exists(CONFIG):
            resume(folder.uri, display, board=own)
        else:
            fit(config, display, board=own)
    except Stopped:
        return _STOPPED
    except UserError as error:
        return str(error)
    except TrainingFailedError as error:
        return f"{one_line(error)}; details in {folder.uri}/btray.log"
    return None


class _Relay:
    """Passes a fold's news on to the board of the cross-validation."""

    def __init__(self, board: Any, fold: int) -> None:  # noqa: ANN401 - a Ray actor handle
        self.board, self.fold = board, fold

    def show(self, update: Update) -> None:
        """Take one piece of news."""
        ray.get(self.board.post.remote({**update, "fold": self.fold}))


def _finish(dataset: Dataset, folder: RunFolder, folds: int) -> CrossValidation:
    """Pool the folds' answers and score them; the result is written last."""
    runs = [files.join(folder.uri, f"fold-{fold}") for fold in range(folds)]
    parts = [_answers(dataset, fold, run) for fold, run in enumerate(runs)]
    pooled = pa.concat_tables(parts)
    names = dataset.manifest.class_names
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pooled, sink)
    folder.write(ROWS, sink.getvalue().to_pybytes())
    doubts = write_doubts(dataset, pooled, folder)
    per_fold = [
        {"fold": fold, "epoch": _epoch(run), **fold_scores(part, names)}
        for fold, (run, part) in enumerate(zip(runs, parts, strict=True))
    ]
    manifest = dataset.manifest
    scores = {
        "folds": folds,
        "data_hash": manifest.content_hash,
        "assignment_hash": manifest.split.assignment_hash,
        "per_fold": per_fold,
        **summary(per_fold),
        "out_of_fold": fold_scores(pooled, names),
        "doubtful_labels": doubts,
    }
    folder.write(RESULT, (json.dumps(scores, indent=1, allow_nan=False) + "\n").encode())
    histories = [json.loads(files.read(files.join(run, "history.json"))) for run in runs]
    bundles = [files.join(run, BUNDLE) for run in runs]
    return CrossValidation(folder, bundles, histories, scores)


def _epoch(run: str) -> int:
    card = json.loads(files.read(files.join(run, f"{BUNDLE}/{CARD}")))
    return int(card["provenance"]["epoch"])


def _answers(dataset: Dataset, fold: int, run: str) -> pa.Table:
    """Return what a fold's bundle answered on the rows it was not trained on."""
    rows = dataset.with_fold(fold).table(["sha256", "label"], "validation")
    saved = load(files.read(files.join(run, VALIDATION)))
    names = dataset.manifest.class_names
    labels = [names[number] for number in saved["labels"]]
    if labels != rows["label"].to_pylist():
        raise RuntimeError(f"{run}: its validation rows are not those of fold {fold}")
    logs = log_softmax(saved["logits"].astype(np.float64), axis=1)
    return pa.table(
        {
            "sha256": rows["sha256"],
            "fold": pa.array([fold] * len(labels), pa.int16()),
            "label": rows["label"],
            "logits": pa.array(saved["logits"].tolist(), pa.list_(pa.float32())),
            # Not calibrated: each fold's calibration was fitted on these very rows.
            "probabilities": pa.array(np.exp(logs).tolist(), pa.list_(pa.float64())),
        }
    )


def fold_scores(rows: pa.Table, class_names: Sequence[str]) -> dict[str, Any]:
    """Return every score of rows with a `label` and `probabilities`, and the loss."""
    from btray.core.metrics import evaluate_probabilities

    labels = np.array([class_names.index(label) for label in rows["label"].to_pylist()])
    probabilities: NDArray[np.float64] = np.array(rows["probabilities"].to_pylist())
    own = probabilities[np.arange(len(labels)), labels]
    loss = -np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean()
    return {"loss": float(loss), **evaluate_probabilities(labels, probabilities, class_names)}


def summary(per_fold: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return `mean` and `standard_deviation` (of the sample) of the folds' scores.

    A score that is undefined in a fold is None in both.
    """
    mean: dict[str, float | None] = {}
    deviation: dict[str, float | None] = {}
    for name in SCORES:
        values = [fold[name] for fold in per_fold]
        defined = None not in values
        mean[name] = float(np.mean(values)) if defined else None
        deviation[name] = float(np.std(values, ddof=1)) if defined else None
    return {"mean": mean, "standard_deviation": deviation}
