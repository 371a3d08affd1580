"""The one way a network is trained: `fit`."""

import json
import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, Result, RunConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from btray import cluster
from btray.config import Config
from btray.core.bundle import Bundle
from btray.core.layout import CARD, WEIGHTS
from btray.core.layout import FOLDER as BUNDLE
from btray.core.zoo import create_model
from btray.data.cache import NodeCaches, fits_in_memory
from btray.data.dataset import Dataset
from btray.data.decoding import decode_rows
from btray.errors import UserError
from btray.train.board import Board, Update
from btray.train.entry import train_worker
from btray.train.inputs import open_training_data
from btray.train.plan import place
from btray.train.progress import Display, follow
from btray.train.storage import RunFolder

METRIC = "val_macro_f1"
_SPLITS = ("train", "validation")
DATA = "data.sha256"
"""File of a run with the hash of its data set's rows in their order, which batches count on."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: RunFolder
    """Where it is."""
    bundle: Bundle
    """The best checkpoint, exported."""
    history: list[dict[str, float]]
    """Global metrics of every epoch."""


def fit(config: Config, display: Display | None = None) -> Run:
    """Train the network a configuration describes and export its best checkpoint.

    Raises:
        UserError: nothing to train on, a network that cannot be built, a run name in use,
            resources the cluster lacks, or a loss that became NaN or infinite.
        ray.train.TrainingFailedError: workers failed more than `train.max_failures` times.

    """
    dataset = _checked(config)
    order = dataset.order_hash()
    folder, settled = RunFolder.create(config)
    folder.write(DATA, order.encode())
    return _run(settled, dataset, folder, display)


def resume(uri: str, display: Display | None = None) -> Run:
    """Go on with an unfinished run from its last checkpoint, with its own configuration.

    Raises:
        UserError: no run there, a finished one, or its data set has changed; else as `fit`.

    """
    folder, config = RunFolder.reopen(uri)
    dataset = _checked(config)
    if dataset.order_hash().encode() != folder.read(DATA):
        raise UserError(
            f"{dataset.uri}: not the data set this run began with: what it was trained on may now "
            "stand in test; start a new run"
        )
    return _run(config, dataset, folder, display)


def _checked(config: Config) -> Dataset:
    """Check all that can be checked before anything is made; connect to the cluster."""
    dataset = open_training_data(config)
    cluster.connect()
    cluster.require_node(config.data.node_labels)
    with torch.device("meta"):
        create_model(config.model, len(dataset.manifest.class_names), config.image.size)
    place(config.train)
    return dataset


def _run(config: Config, dataset: Dataset, folder: RunFolder, display: Display | None) -> Run:
    placement = place(config.train)
    if display is not None:
        display.show(Update(kind="run", uri=folder.uri))
    with _ray_log(folder):
        board = _board(config.train.workers)
        settings = {
            "config": config,
            "class_names": dataset.manifest.class_names,
            "board": board,
            "threads": placement.cpus,
        }
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=settings,
            scaling_config=placement.scaling(),
            run_config=_run_config(config, folder),
        )
        with _decoding(dataset, config, board), follow(board, display) as news:
            result = trainer.fit()
    if news.diverged is not None:
        raise UserError(_divergence(news.diverged, config, folder))
    return _finish(config, dataset, folder, result)


def _board(workers: int) -> Any:  # noqa: ANN401 - a Ray actor handle
    """Start the board on the driver's own node: no loss of another node takes it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote(workers)  # type: ignore[attr-defined]


def _run_config(config: Config, folder: RunFolder) -> RunConfig:
    return RunConfig(
        name=folder.name,
        storage_path=folder.parent,
        storage_filesystem=folder.filesystem,
        failure_config=FailureConfig(
            max_failures=config.train.max_failures,
            controller_failure_limit=3,  # type: ignore[call-arg]  # Train V2 has it
        ),
        checkpoint_config=CheckpointConfig(
            num_to_keep=config.train.keep_checkpoints,
            checkpoint_score_attribute=METRIC,
            checkpoint_score_order="max",
        ),
    )


@contextmanager
def _decoding(dataset: Dataset, config: Config, board: Any) -> Iterator[None]:  # noqa: ANN401
    """Decode beside the workers, which wait for the board to have their rows.

    What fits into memory is decoded while they start. More is streamed to the nodes they
    turn out to be on, and again to a new node when one of them is replaced. When decoding
    fails they leave without a word, and its exception is raised at the end.
    """
    failure: list[BaseException] = []
    provide = _provide_blocks if fits_in_memory(dataset, _SPLITS, config) else _provide_caches

    def decode() -> None:
        try:
            provide(dataset, config, board)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            failure.append(error)
            ray.get(board.close.remote())

    thread = threading.Thread(target=decode, name="btray-decode", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ray.get(board.close.remote())
        thread.join()
    if failure:
        raise failure[0]


def _provide_blocks(dataset: Dataset, config: Config, board: Any) -> None:  # noqa: ANN401
    blocks = decode_rows(dataset, _SPLITS, config.image, config.data.node_labels)
    ray.get(board.offer.remote(blocks))


def _provide_caches(dataset: Dataset, config: Config, board: Any) -> None:  # noqa: ANN401
    caches = NodeCaches(dataset, _SPLITS, config)
    try:
        while nodes := ray.get(board.nodes.remote()):
            ray.get(board.offer_cached.remote(caches.serve(nodes)))
    finally:
        caches.close()


@contextmanager
def _ray_log(folder: RunFolder) -> Iterator[None]:
    """Keep the log of this run, news and failures, in `btray.log` of its folder."""
    with tempfile.TemporaryDirectory() as temporary:
        path = (folder.local or Path(temporary)) / "btray.log"
        try:
            with cluster.log_to_file(path), _logged_failure():
                yield
        finally:
            if folder.local is None:
                with suppress(UserError):  # what went wrong matters more than its log
                    folder.write(path.name, path.read_bytes())


@contextmanager
def _logged_failure() -> Iterator[None]:
    try:
        yield
    except Exception:
        logging.getLogger("btray").exception("the run ended early")
        raise


def _divergence(update: Any, config: Config, folder: RunFolder) -> str:  # noqa: ANN401
    return (
        f"training diverged: the loss became {update['loss']} at epoch {update['epoch'] + 1}, "
        f"step {update['step'] + 1}; lower train.learning_rate "
        f"(now {config.train.learning_rate:g}); the last good checkpoint is in {folder.uri}"
    )


def _finish(config: Config, dataset: Dataset, folder: RunFolder, result: Result) -> Run:
    from btray.train.export import export_bundle, read_progress  # not before the first step

    if result.checkpoint is None:
        raise RuntimeError(f"{folder.uri}: training ended without a checkpoint")
    with result.checkpoint.as_directory() as checkpoint:
        history = read_progress(Path(checkpoint)).history
    folder.write("history.json", json.dumps(history, indent=1).encode())
    with tempfile.TemporaryDirectory() as temporary:
        directory = folder.local / BUNDLE if folder.local else Path(temporary) / BUNDLE
        with best_checkpoint(result).as_directory() as checkpoint:
            bundle = export_bundle(Path(checkpoint), directory, config, dataset)
        if folder.local is None:
            for name in (WEIGHTS, CARD):  # the card last: with it the run is finished
                folder.write(f"{BUNDLE}/{name}", (directory / name).read_bytes())
    return Run(folder, bundle, history)


def best_checkpoint(result: Result) -> Checkpoint:
    """Return the kept checkpoint of best validation macro-F1; of equals, that of lower loss."""
    checkpoints: list[tuple[Checkpoint, dict[str, Any]]] = result.best_checkpoints or []
    whole = [pair for pair in checkpoints if "val_loss" in pair[1]]  # made at an epoch's end
    return max(whole, key=lambda pair: (pair[1][METRIC], -pair[1]["val_loss"]))[0]
