"""The one way a network is trained: `fit`."""

import json
import logging
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    Result,
    RunConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from btray import cluster
from btray.config import Config, dump_config
from btray.core.bundle import Bundle, load_bundle
from btray.core.distill import load_teacher
from btray.core.files import reason
from btray.core.layout import CARD, WEIGHTS
from btray.core.layout import FOLDER as BUNDLE
from btray.core.optim import create_optimizer
from btray.core.weights import Weights, initial_weights, is_bundle
from btray.core.zoo import create_model
from btray.data.cache import NodeCaches, fits_in_memory
from btray.data.dataset import Dataset
from btray.data.decoding import decode_rows
from btray.errors import UserError
from btray.train.board import Board, Update
from btray.train.changes import Changes
from btray.train.checkpoints import RECORD, RecordKeeper, mend_record
from btray.train.entry import train_worker
from btray.train.inputs import open_training_data
from btray.train.learner import SCORE, VALIDATION
from btray.train.network import GroupConfig
from btray.train.plan import Placement, Shortage, place, wanted
from btray.train.progress import Display, News, follow
from btray.train.stopping import TerminationCallback
from btray.train.storage import CONFIG, RunFolder

_SPLITS = ("train", "validation")
_STARTS = 30
"""How often workers that find no room within a minute are tried again: half an hour for a lost
node to be replaced. Ray counts a drained node as room until it is gone."""
_OUTAGE = 15
"""Seconds after which a run goes on whose storage could not be written."""
DATA = "data.sha256"
"""File of a run with the hash of its data set's rows in their order, which batches count on."""
TEACHER = "teacher.sha256"
"""File of a distillation with the hash of its teacher's card."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: RunFolder
    """Where it is."""
    bundle: Bundle
    """The best checkpoint, exported."""
    history: list[dict[str, float]]
    """Global metrics of every epoch."""


class DivergedError(UserError):
    """The loss became NaN or infinite."""


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """SIGTERM ended a run early; it can be resumed."""


def fit(
    config: Config,
    display: Display | None = None,
    wait: bool = False,
    board: Any = None,  # noqa: ANN401 - a Ray actor handle
) -> Run:
    """Train the network a configuration describes and export its best checkpoint.

    In the main thread SIGTERM asks for a checkpoint of the current step and ends the run; a
    second one ends the process. So does, from any process, `stop` of the `board` that may be
    given (see `open_board`).

    Raises:
        UserError: nothing to train on, a network that cannot be built, a run name in use,
            resources the cluster lacks, unless to `wait` for them, storage that cannot be
            written.
        DivergedError: the loss became NaN or infinite.
        ray.train.TrainingFailedError: workers failed more than `train.max_failures` times.
        Stopped: by SIGTERM.

    """
    dataset = _checked(config, display, wait)
    refuse_seen("model.pretrained", config.model.pretrained, dataset)
    refuse_seen("train.teacher", config.train.teacher, dataset)
    weights = _initial_weights(config, dataset)
    teacher = _teacher(config, dataset)
    notes = {DATA: dataset.order_hash()}
    if teacher is not None:
        notes[TEACHER] = teacher.card.card_sha256
    folder, settled = RunFolder.create(config, notes)
    return _run(settled, dataset, folder, display, weights, teacher, board)


def resume(
    uri: str,
    display: Display | None = None,
    wait: bool = False,
    changes: Changes | None = None,
    board: Any = None,  # noqa: ANN401 - a Ray actor handle
) -> Run:
    """Go on with an unfinished run from its last checkpoint, with its own configuration.

    Raises:
        UserError: no run there, a finished one, its data set has changed, or a setting that
            must not; else as `fit`.

    """
    folder, config, changed = RunFolder.reopen(uri, changes)
    dataset = _checked(config, display, wait)
    if dataset.order_hash().encode() != folder.read(DATA):
        raise UserError(
            f"{dataset.uri}: not the data set this run began with: what it was trained on may now "
            "stand in test; start a new run"
        )
    teacher = _teacher(config, dataset)
    if teacher is not None and teacher.card.card_sha256.encode() != folder.read(TEACHER):
        raise UserError(
            f"train.teacher: {teacher.uri} is not the bundle this run began with; start a new run"
        )
    if changed:
        folder.write(CONFIG, dump_config(config).encode())
    for line in changed:
        _tell(display, Update(kind="changed", reason=line))
    mend_record(folder)
    weights = None
    if not folder.exists(RECORD):
        weights = _initial_weights(config, dataset)
    return _run(config, dataset, folder, display, weights, teacher, board)


def _initial_weights(config: Config, dataset: Dataset) -> Weights | None:
    names = dataset.manifest.class_names
    return initial_weights(config.model, names, config.image.size, config.seed)


def _teacher(config: Config, dataset: Dataset) -> Bundle | None:
    if config.train.teacher is None:
        return None
    manifest = dataset.manifest
    return load_teacher(
        config.train.teacher, config.image, manifest.class_names, manifest.content_hash
    )


def _tell(display: Display | None, update: Update) -> None:
    if display is not None:
        display.show(update)


def _checked(config: Config, display: Display | None, wait: bool) -> Dataset:
    """Check all that can be checked before anything is made; connect to the cluster."""
    dataset = open_training_data(config)
    cluster.connect()
    cluster.require_node(config.data.node_labels)
    with torch.device("meta"):
        network = create_model(config.model, len(dataset.manifest.class_names), config.image.size)
        create_optimizer(network, config.train)
    if wait:
        _await_room(config, display)
    check_training(config, dataset, place(config.train).gpu)
    return dataset


def _await_room(config: Config, display: Display | None) -> None:
    """Wait until the workers find room; not on a cluster of our own, which no node joins."""
    if not cluster.joined() or _shortage(config) is None:
        return
    told = None
    with cluster.asked_for(wanted(config.train)):
        while (reason := _shortage(config)) is not None:
            if reason != told:
                _tell(display, Update(kind="waiting", reason=reason))
                told = reason
            time.sleep(1)


def _shortage(config: Config) -> str | None:
    try:
        place(config.train)
    except Shortage as shortage:
        return str(shortage)
    return None


def check_training(config: Config, dataset: Dataset, gpu: bool) -> None:
    """Refuse settings that this data set or this cluster cannot honour."""
    train = config.train
    if train.sync_batch_norm and not gpu:
        raise UserError("train.sync_batch_norm: torch has it on GPUs only; turn it off")
    if train.precision == "float16" and not gpu:
        raise UserError("train.precision: float16 needs a GPU; take bfloat16 or float32")
    if train.teacher is not None and config.data.fold is not None:
        raise UserError(
            "train.teacher: it may have learned what a fold holds out; distil without folds"
        )
    present = dataset.manifest.counts.get("validation", {})
    if train.metric == "macro_auroc" and len(present) < len(dataset.manifest.class_names):
        raise UserError(
            "train.metric: macro_auroc needs validation rows of every class; take macro_f1"
        )


def refuse_seen(setting: str, origin: str | None, dataset: Dataset) -> None:
    """Raise UserError for a bundle to learn from that knows the rows which are to judge it."""
    if origin is None or not is_bundle(origin):
        return
    provenance = load_bundle(origin).card.provenance
    if provenance.refit and provenance.data_hash == dataset.manifest.content_hash:
        raise UserError(
            f"{setting}: {origin} was trained on this data set's validation too (a refit): scores "
            "would be too good; take another bundle"
        )


def _run(
    config: Config,
    dataset: Dataset,
    folder: RunFolder,
    display: Display | None,
    weights: Weights | None,
    teacher: Bundle | None,
    board: Any,  # noqa: ANN401 - a Ray actor handle
) -> Run:
    placement = place(config.train)
    _tell(display, Update(kind="run", uri=folder.uri))
    with run_log(folder):
        board = board or open_board(placement.workers)
        settings = {
            "config": config,
            "class_names": dataset.manifest.class_names,
            "board": board,
            "weights": None if weights is None else ray.put(weights),
            "teacher": None if teacher is None else ray.put(teacher),
            "threads": placement.cpus,
        }
        with (
            stopped_by_sigterm(lambda: ray.get(board.stop.remote())) as asked,
            _decoding(dataset, config, board),
            follow(board, display) as news,
        ):
            result = _train(settings, placement, config, folder)
        _look_back(news, asked, result, config, folder)
        return _finish(config, dataset, folder, result, teacher)


def _train(
    settings: dict[str, Any], placement: Placement, config: Config, folder: RunFolder
) -> Result:
    """Let Ray Train run, and go on from its record when its controller itself is lost."""
    attempts = config.train.max_failures + 1
    for attempt in range(attempts):
        try:
            return TorchTrainer(
                train_worker,
                train_loop_config=settings,
                torch_config=GroupConfig(),  # type: ignore[arg-type]  # loads no torch
                scaling_config=placement.scaling(),
                run_config=_run_config(config, folder),
            ).fit()
        except RayActorError as error:
            if attempt + 1 == attempts:
                raise TrainingFailedError(f"Ray Train's controller was lost: {error}") from None
            logging.getLogger("btray").warning("Ray Train's controller was lost; going on")
            mend_record(folder)
        except ControllerError as error:  # it could not write its record
            if attempt + 1 == attempts or not isinstance(error.controller_failure, OSError):
                raise
            logging.getLogger("btray").warning("%s; going on in %d s", error, _OUTAGE)
            time.sleep(_OUTAGE)
            mend_record(folder)
        except OSError as error:
            raise UserError(f"{folder.uri}: cannot be written: {reason(error)}") from None
    raise AssertionError("unreachable: the last attempt returns or raises")


@contextmanager
def stopped_by_sigterm(tell: Callable[[], object]) -> Iterator[threading.Event]:
    """Let SIGTERM be told, in a thread of its own; yield what says that it came."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, _frame: object) -> None:
        if asked.is_set():
            sys.exit(128 + number)
        asked.set()
        threading.Thread(target=tell, name="btray-stop", daemon=True).start()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _look_back(
    news: News, asked: threading.Event, result: Result, config: Config, folder: RunFolder
) -> None:
    """Raise what keeps a run that Ray Train calls finished from being so."""
    if news.diverged is not None:
        raise DivergedError(_divergence(news.diverged, config, folder))
    if news.stopped is not None or (asked.is_set() and result.checkpoint is None):
        raise Stopped(folder.uri)


def open_board(workers: int) -> Any:  # noqa: ANN401 - a Ray actor handle
    """Start a run's board on the driver's own node: no loss of another node takes it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote(workers)  # type: ignore[attr-defined]


def _run_config(config: Config, folder: RunFolder) -> RunConfig:
    return RunConfig(
        name=folder.name,
        storage_path=folder.parent,
        storage_filesystem=folder.filesystem,
        failure_config=FailureConfig(
            max_failures=config.train.max_failures,
            controller_failure_limit=_STARTS,  # type: ignore[call-arg]  # Train V2 has it
        ),
        callbacks=[RecordKeeper(folder), TerminationCallback()],  # type: ignore[list-item]
        checkpoint_config=CheckpointConfig(
            num_to_keep=config.train.keep_checkpoints,
            checkpoint_score_attribute=SCORE,
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
def run_log(folder: RunFolder) -> Iterator[None]:
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


def _finish(
    config: Config, dataset: Dataset, folder: RunFolder, result: Result, teacher: Bundle | None
) -> Run:
    from btray.train.export import export_bundle, read_progress  # not before the first step

    if result.checkpoint is None:
        raise RuntimeError(f"{folder.uri}: training ended without a checkpoint")
    with result.checkpoint.as_directory() as checkpoint:
        history = read_progress(Path(checkpoint)).history
    folder.write("history.json", json.dumps(history, indent=1).encode())
    with tempfile.TemporaryDirectory() as temporary:
        directory = folder.local / BUNDLE if folder.local else Path(temporary) / BUNDLE
        with best_checkpoint(result).as_directory() as checkpoint:
            # What the best epoch answered on validation: cross-validation pools it.
            folder.write(VALIDATION, (Path(checkpoint) / VALIDATION).read_bytes())
            origin = None if teacher is None else f"{teacher.card.name} {teacher.version}"
            bundle = export_bundle(Path(checkpoint), directory, config, dataset, origin)
        if folder.local is None:
            for name in (WEIGHTS, CARD):  # the card last: with it the run is finished
                folder.write(f"{BUNDLE}/{name}", (directory / name).read_bytes())
    return Run(folder, bundle, history)


def best_checkpoint(result: Result) -> Checkpoint:
    """Return the kept checkpoint of the best score; of equals, that of lower loss."""
    checkpoints: list[tuple[Checkpoint, dict[str, Any]]] = result.best_checkpoints or []
    whole = [pair for pair in checkpoints if "val_loss" in pair[1]]  # made at an epoch's end
    return max(whole, key=lambda pair: (pair[1][SCORE], -pair[1]["val_loss"]))[0]
