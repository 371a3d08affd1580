"""A sweep in MLflow: a run for the whole, and one nested inside it for every trial."""

import json
import threading
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from btray.errors import UserError
from btray.registry.client import NotInstalled, locate
from btray.registry.send import Sender
from btray.registry.spool import Spool
from btray.registry.tracker import parameters
from btray.train.storage import RunFolder
from btray.tune.outcome import Trial
from btray.tune.settings import SweepConfig

PARENT: Final = "mlflow.parentRunId"
"""MLflow's own tag of a nested run."""
INTERVAL: Final = 2.0
"""Seconds between two looks for what is new."""
_STATUS: Final = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


class SweepTracker:
    """Watches a sweep and tells MLflow, without any trial waiting for it.

    Every trial's folder keeps its own events, which are sent again after a failure.
    """

    def __init__(self, config: SweepConfig, data_hash: str, warn: Callable[[str], None]) -> None:
        """Take a sweep's configuration and its data set's content hash.

        Raises:
            UserError: `tracking.uri` is none.

        """
        self.config, self.data_hash, self.warn = config, data_hash, warn
        self.uri = locate(config.tracking.uri, config.run.storage)
        self._parent: Sender | None = None
        self._children: dict[str, Sender] = {}
        self._trials: dict[str, Trial] = {}
        self._told: dict[str, tuple[int, str]] = {}
        self._folder = ""
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._trouble = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the sweep in MLflow as it ended here, and send what is left."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._parent is None:
            return
        failed = "KILLED" if kind is not None and not issubclass(kind, Exception) else "FAILED"
        told = self._try(
            lambda: self._note("status", status="FINISHED" if kind is None else failed)
        )
        if not (told and self._sync()):
            self.warn(
                f"tracking: the sweep could not be sent whole ({self._trouble}); all of it is in "
                f"{self._folder}/sweep.json"
            )

    def sweep(self, folder: str, plan: str) -> None:  # noqa: ARG002 - a watcher's
        """Begin to tell MLflow, or go on."""
        self._folder = folder
        tags = {"btray.sweep": RunFolder.locate(folder).name, "btray.data_hash": self.data_hash}
        searched = self.config.tune.model_dump(mode="json")
        more = {f"tune.{name}": json.dumps(value) for name, value in searched.items()}
        params = parameters(self.config.base()) | {k: v[:6000] for k, v in more.items()}
        if not self._try(lambda: self._begin(RunFolder.locate(folder), params, tags)):
            return
        self._thread = threading.Thread(target=self._work, name="btray-tracking", daemon=True)
        self._thread.start()

    def trial(self, trial: Trial, trials: dict[str, Trial]) -> None:  # noqa: ARG002 - a watcher's
        """Take note of a trial; the rest happens in a thread."""
        with self._lock:
            self._trials[trial.id] = Trial(**{**vars(trial), "history": list(trial.history)})

    def finish(self, bundle: str) -> None:
        """Add which bundle came of it."""
        self._try(lambda: self._note("tags", tags={"btray.bundle": bundle}))

    def _begin(self, folder: RunFolder, params: dict[str, str], tags: dict[str, str]) -> None:
        self._parent = self._open(folder, params, tags)

    def _open(self, folder: RunFolder, params: dict[str, str], tags: dict[str, str]) -> Sender:
        spool = Spool(folder)
        if spool.events:
            spool.append("status", status="RUNNING")
        else:
            key = uuid.uuid4().hex
            spool.append("start", key=key, name=folder.name, params=params, tags=tags)
        return Sender(spool, self.uri, self.config.tracking.experiment, self.warn)

    def _work(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._sync()

    def _sync(self) -> bool:
        """Send what is new; say whether all was taken."""
        with self._lock:
            trials = list(self._trials.values())
        return self._try(lambda: self._send(trials))

    def _send(self, trials: list[Trial]) -> None:
        if self._parent is None:
            return
        self._parent.send()
        for trial in trials:
            self._sync_trial(trial, str(self._parent.state.run_id))

    def _try(self, action: Callable[[], object]) -> bool:
        """Do something that may fail without the sweep failing; the first time is told."""
        try:
            action()
        except UserError as error:
            if not self._trouble:
                self.warn(f"tracking: {error}; the sweep goes on, and is sent later")
            self._trouble = str(error)
            if isinstance(error, NotInstalled):
                self._stop.set()
            return False
        return True

    def _sync_trial(self, trial: Trial, parent: str) -> None:
        if trial.id not in self._children:
            folder = RunFolder.locate(f"{self._folder}/trial-{trial.id}")
            params = {path: str(value) for path, value in trial.point.items()}
            tags = {PARENT: parent, "btray.data_hash": self.data_hash}
            self._children[trial.id] = self._open(folder, params, tags)
            known = [e for e in self._children[trial.id].spool.events if e["kind"] == "metrics"]
            self._told[trial.id] = (known[-1]["step"] if known else 0, "")
        sender, (epochs, status) = self._children[trial.id], self._told[trial.id]
        for row in trial.history:
            step = int(row["epoch"]) + 1
            if step > epochs:
                values = {name: value for name, value in row.items() if name != "epoch"}
                sender.spool.append("metrics", step=step, values=values)
                epochs = step
        now = _STATUS.get(trial.state, "")
        if now and now != status:
            sender.spool.append("tags", tags={"btray.state": trial.state})
            sender.spool.append("status", status=now)
        self._told[trial.id] = (epochs, now)
        sender.send()

    def _note(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON holds
        if self._parent is not None:
            self._parent.spool.append(kind, **fields)
