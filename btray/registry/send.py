"""From a run's spool to an MLflow store: every event arrives, however often it is sent."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from btray.config import parse_yaml, resolve_config
from btray.core import files
from btray.errors import UserError
from btray.registry.client import answered, experiment_id, locate, open_client
from btray.registry.spool import EVENTS, STATE, Event, Spool
from btray.train.storage import CONFIG, RunFolder

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

KEY: Final = "btray.key"
"""Tag that finds a run again when the answer to its creation was lost."""
_METRICS: Final = 1000
_PARAMS: Final = 100
"""Most that MLflow takes at once."""


@dataclass
class State:
    """What a store has of a run already; `tracking.json`."""

    uri: str
    """Of the store."""
    run_id: str | None = None
    """MLflow's name of the run."""
    sent: int = 0
    """Events sent, from the first on."""

    @classmethod
    def read(cls, folder: RunFolder) -> Self | None:
        """Return what was stored; None when nothing was, or half."""
        try:
            return cls(**json.loads(folder.read(STATE)))
        except (ValueError, TypeError):
            return None


class Sender:
    """Sends a run's events in order. Sending one twice changes nothing in the store."""

    def __init__(
        self, spool: Spool, uri: str, experiment: str, warn: Callable[[str], None]
    ) -> None:
        self.spool, self.uri, self.experiment, self.warn = spool, uri, experiment, warn
        known = State.read(spool.folder)
        self.state = known if known is not None and known.uri == uri else State(uri)
        self._client: MlflowClient | None = None

    @property
    def pending(self) -> int:
        """Return how many events the store does not have."""
        return len(self.spool.events) - self.state.sent

    def send(self) -> int:
        """Send what the store does not have; return how many events that were.

        Raises:
            UserError: the store cannot be reached; what it has by then is remembered.

        """
        before = self.state.sent
        if self._client is None:
            self._client = open_client(self.uri, create=True)
        while events := _together(self.spool.events[self.state.sent :]):
            with answered(self.uri):
                self._apply(self._client, events)
            self.state.sent += len(events)
            self.spool.folder.write(STATE, json.dumps(asdict(self.state)).encode())
        return self.state.sent - before

    def _apply(self, client: "MlflowClient", events: Sequence[Event]) -> None:
        event = events[0]
        if event["kind"] == "start":
            self.state.run_id = self._start(client, event)
            return
        run_id = self._run_id()
        match event["kind"]:
            case "metrics":
                client.log_batch(run_id, metrics=_metrics(events))
            case "tags":
                for name, value in event["tags"].items():
                    client.set_tag(run_id, name, value)
            case "files":
                self._upload(client, run_id, event["names"], event["to"])
            case "status":
                _set_status(client, run_id, event)

    def _run_id(self) -> str:
        if self.state.run_id is None:
            raise UserError(
                f"{files.join(self.spool.folder.uri, EVENTS)}: does not begin with the run's "
                "start; it cannot be sent"
            )
        return self.state.run_id

    def _start(self, client: "MlflowClient", event: Event) -> str:
        from mlflow.entities import Param

        experiment = experiment_id(client, self.uri, self.experiment, create=True)
        found = client.search_runs([experiment], f"tags.`{KEY}` = '{event['key']}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
        else:
            run_id = client.create_run(
                experiment,
                start_time=event["time"],
                tags={**event["tags"], KEY: event["key"]},
                run_name=event["name"],
            ).info.run_id
        params = [Param(name, value) for name, value in event["params"].items()]
        for start in range(0, len(params), _PARAMS):
            client.log_batch(run_id, params=params[start : start + _PARAMS])
        return str(run_id)

    def _upload(self, client: "MlflowClient", run_id: str, names: Sequence[str], to: str) -> None:
        folder = self.spool.folder
        with tempfile.TemporaryDirectory() as temporary:
            for name in names:
                path = Path(temporary) / Path(name).name
                try:
                    path.write_bytes(files.read(files.join(folder.uri, name)))
                except FileNotFoundError:
                    self.warn(f"tracking: {files.join(folder.uri, name)} is gone; left out")
                    continue
                client.log_artifact(run_id, str(path), to or None)
                path.unlink()


def _together(events: Sequence[Event]) -> Sequence[Event]:
    """Return the first event, and the metrics right after it when it is one of metrics."""
    count = size = 0
    for event in events:
        size += len(event.get("values", ()))
        if event["kind"] != "metrics" or size > _METRICS:
            break
        count += 1
    return events[: max(count, 1)]


def _metrics(events: Sequence[Event]) -> list[Any]:
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), event["time"], event["step"])
        for event in events
        for name, value in event["values"].items()
    ]


def _set_status(client: "MlflowClient", run_id: str, event: Event) -> None:
    if event["status"] == "RUNNING":
        client.update_run(run_id, "RUNNING")
    else:
        client.set_terminated(run_id, event["status"], end_time=event["time"])


def sender_of(
    folder: RunFolder, warn: Callable[[str], None], tracking: str | None = None
) -> Sender:
    """Return what sends the events a run left behind.

    Args:
        folder: Of the run.
        warn: Told, in a line, of files that are gone.
        tracking: Another store than the run's own.

    Raises:
        UserError: no run, one that was not tracked, or a damaged spool.

    """
    if not folder.exists(EVENTS):
        raise UserError(f"{folder.uri}: no tracked run (no {EVENTS}); give the folder of a run")
    where = files.join(folder.uri, CONFIG)
    try:
        text = files.read(where).decode()
    except FileNotFoundError:
        raise UserError(f"{folder.uri}: no run (no {CONFIG}); give the folder of a run") from None
    settings = resolve_config(parse_yaml(text, where)).tracking
    state = State.read(folder)
    known = state.uri if state is not None else settings.uri
    storage, _ = files.split(folder.uri)
    uri = locate(tracking or known, storage)
    return Sender(Spool(folder), uri, settings.experiment, warn)
