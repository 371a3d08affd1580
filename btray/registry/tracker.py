"""A run's news on their way to MLflow, without training ever waiting for it."""

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from btray.config import Config
from btray.core import files
from btray.core.layout import CARD, FOLDER, WEIGHTS
from btray.errors import UserError
from btray.registry.client import NotInstalled, locate
from btray.registry.send import Sender, sender_of
from btray.registry.spool import EVENTS, Spool
from btray.train.storage import RunFolder

if TYPE_CHECKING:
    from btray.train.board import Update
    from btray.train.trainer import Run

INTERVAL: Final = 1.0
"""Seconds between two looks for events to send."""
SYSTEM: Final = 10.0
"""Seconds between two samples of the driver's machine."""
PATIENCE: Final = 30.0
"""Longest wait, in seconds, before a store that did not answer is asked again."""

Warn = Callable[[str], None]


class Tracker:
    """A display of a run that writes its news into the run's spool and sends them on.

    Nothing of MLflow is loaded, and nothing sent, before the first step is taken. A store
    that does not answer is told of once; the events stay in the spool.
    """

    def __init__(self, config: Config, data_hash: str, warn: Warn) -> None:
        """Take a run's configuration and its data set's content hash.

        Raises:
            UserError: `tracking.uri` is none.

        """
        self.config, self.data_hash, self.warn = config, data_hash, warn
        self.uri = locate(config.tracking.uri, config.run.storage)
        self.spool: Spool | None = None
        self._sender: Sender | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._warned = self._missing = False
        self._trouble = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the run in MLflow as it ended here, and send what is left."""
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        failed = "KILLED" if interrupted else "FAILED"
        self._note("status", status=failed if kind is not None else "FINISHED")
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._sender is not None and not self._missing:
            self._try(self._sender.send)
            if self._sender.pending and not self._missing:
                self._tell_pending(self._sender)

    def _tell_pending(self, sender: Sender) -> None:
        self.warn(
            f"tracking: {sender.pending} events could not be sent ({self._trouble}); they are "
            f"kept in {files.join(sender.spool.folder.uri, EVENTS)}; send them with: "
            f"btray runs sync {sender.spool.folder.uri}"
        )

    def show(self, update: "Update") -> None:
        """Take one piece of news."""
        match update["kind"]:
            case "run":
                self._try(lambda: self._open(update["uri"]))
            case "step":
                self._begin()
            case "epoch":
                step = int(update["epoch"]) + 1
                values = {name: v for name, v in update["metrics"].items() if name != "epoch"}
                self._note("metrics", step=step, values=values)
                self._begin()

    def finish(self, run: "Run") -> None:
        """Add what a finished run has: its best scores, bundle, curves and commit."""
        card = run.bundle.card
        scores = {f"best_{name}": value for name, value in card.metrics.items()}
        self._note("metrics", step=card.provenance.epoch + 1, values=scores)
        tags = {"btray.bundle": run.bundle.version}
        if card.provenance.code_version is not None:
            tags["mlflow.source.git.commit"] = card.provenance.code_version
        self._note("tags", tags=tags)
        self._note("files", names=["curves.png", "history.json"], to="")
        self._note("files", names=[f"{FOLDER}/{WEIGHTS}", f"{FOLDER}/{CARD}"], to=FOLDER)

    def _open(self, uri: str) -> None:
        folder = RunFolder.locate(uri)
        spool = Spool(folder)
        if spool.events:
            spool.append("status", status="RUNNING")
        else:
            spool.append(
                "start",
                key=uuid.uuid4().hex,
                name=folder.name,
                params=parameters(self.config),
                tags={"btray.run": folder.name, "btray.data_hash": self.data_hash},
            )
        self.spool = spool
        self._sender = Sender(spool, self.uri, self.config.tracking.experiment, self.warn)

    def _note(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON holds
        spool = self.spool
        if spool is not None:
            self._try(lambda: spool.append(kind, **fields))

    def _begin(self) -> None:
        if self._sender is None or self._thread is not None:
            return
        self._thread = threading.Thread(
            target=self._work, args=(self._sender,), name="btray-tracking", daemon=True
        )
        self._thread.start()

    def _work(self, sender: Sender) -> None:
        """Send what there is, again and again, at the lowest priority."""
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        machine: Machine | None = None
        wait, again = INTERVAL, 0.0
        while not self._stop.wait(INTERVAL) and not self._missing:
            if machine is not None and machine.due():
                self._note("metrics", step=machine.seconds(), values=machine.sample())
            if time.monotonic() < again or not sender.pending:
                continue
            if self._try(sender.send):
                machine, wait = machine or Machine(), INTERVAL
            else:
                wait = min(2 * wait, PATIENCE)
                again = time.monotonic() + wait

    def _try(self, action: Callable[[], object]) -> bool:
        """Do something that may fail without training failing; the first time is told."""
        try:
            action()
        except UserError as error:
            self._trouble = str(error)
            self._missing = self._missing or isinstance(error, NotInstalled)
            if not self._warned:
                self._warned = True
                self.warn(f"tracking: {error}; training goes on, its events are kept to be sent")
            return False
        return True


class Machine:
    """The load of the driver's machine, by MLflow's own monitors; needs MLflow loaded."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        self._monitors: list[Any] = [CPUMonitor()]
        with suppress(ImportError, RuntimeError):  # no GPU, or no nvidia-ml-py to ask it with
            self._monitors.append(GPUMonitor())
        self._began = self._last = time.monotonic()

    def due(self) -> bool:
        """Say whether it is time for a sample."""
        return time.monotonic() - self._last >= SYSTEM

    def seconds(self) -> int:
        """Return the whole seconds since the first look."""
        return round(time.monotonic() - self._began)

    def sample(self) -> dict[str, float]:
        """Return CPU and GPU use in per cent, memory in megabytes and per cent."""
        self._last = time.monotonic()
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{k}": float(v) for k, v in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values


def parameters(config: Config) -> dict[str, str]:
    """Return a configuration flat, `train.epochs`: `30`, without places: they may name people."""
    tree = config.model_dump(
        mode="json",
        exclude={"run": True, "tracking": True, "data": {"dataset", "cache_dir"}},
    )
    pretrained = tree["model"]["pretrained"]
    if pretrained is not None and pretrained != "hub" and not pretrained.startswith("package:"):
        tree["model"]["pretrained"] = "file"
    return dict(_flat(tree, ""))


def _flat(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", str(value)))
    return pairs


def record_evaluation(
    bundle_uri: str, directory: Path, names: list[str], metrics: Mapping[str, Any], warn: Warn
) -> bool:
    """Add a report to the run its bundle lies in, and send it; False when it lies in none.

    The report is copied into the run, as `evaluation-SPLIT`, so that it can be sent later.
    What fails is told in a line: the report itself is done.
    """
    if bundle_uri.startswith("models:"):
        return False  # in the registry, and not in a run's folder
    storage, name = files.split(files.absolute(bundle_uri))
    folder = RunFolder.locate(storage)
    if name != FOLDER or not folder.exists(EVENTS):
        return False
    try:
        to = evaluation_folder(metrics)
        for file in names:
            folder.write(f"{to}/{file}", (directory / file).read_bytes())
        sender = sender_of(folder, warn)
        keys = ("accuracy", "macro_f1", "macro_auroc")
        scores = {f"{to}/{key}": metrics[key] for key in keys if metrics[key] is not None}
        sender.spool.append("metrics", step=0, values=scores)
        sender.spool.append("files", names=[f"{to}/{file}" for file in names], to=to)
        sender.send()
    except UserError as error:
        warn(f"tracking: {error}; send the report later with: btray runs sync {folder.uri}")
    return True


def evaluation_folder(metrics: Mapping[str, Any]) -> str:
    """Name the folder of a report in its run; one on another data set has its hash in it."""
    dataset = metrics["dataset"]
    other = "" if dataset["same_as_trained_on"] else f"-{dataset['content_hash'][:8]}"
    return f"evaluation-{metrics['split']}{other}"
