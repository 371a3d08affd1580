"""What is to be told about a run, kept in its folder until an MLflow store has it."""

import json
import threading
import time
from typing import Any, Final

from btray.core import files
from btray.errors import UserError
from btray.train.storage import RunFolder

EVENTS: Final = "tracking.jsonl"
"""File of a run with one event a line."""
STATE: Final = "tracking.json"
"""File of a run that says which MLflow run it is and how many events were sent."""

Event = dict[str, Any]
"""`kind` and `time` (milliseconds since 1970), and by kind:

- `start`: `key`, `name`, `params`, `tags`
- `tags`: `tags`
- `metrics`: `step`, `values`
- `files`: `names` inside the run's folder, `to`, the folder among the artifacts
- `status`: `status` as MLflow names it
"""


class Spool:
    """The events of a run, in order; safe to use from several threads."""

    def __init__(self, folder: RunFolder) -> None:
        """Read what is there already; raises UserError if a line is damaged."""
        self.folder = folder
        self._lock = threading.Lock()
        data = folder.read(EVENTS)
        whole, end, torn = data.rpartition(b"\n")
        self._lines = whole.split(b"\n") if end else []
        self.events = [self._parse(number, line) for number, line in enumerate(self._lines, 1)]
        if torn:  # the process was killed while it wrote; what follows must not join this
            folder.write(EVENTS, whole + end)

    def _parse(self, number: int, line: bytes) -> Event:
        try:
            event = dict(json.loads(line))
            event["kind"], event["time"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{files.join(self.folder.uri, EVENTS)}: line {number} is damaged; remove it"
            ) from None
        return event

    def append(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON holds
        """Add an event that happened now.

        Raises:
            UserError: the run's storage cannot be written.

        """
        event = {"kind": kind, "time": int(time.time() * 1000), **fields}
        with self._lock:
            self._lines.append(json.dumps(event).encode())
            self.events.append(event)
            self._write()

    def _write(self) -> None:
        local = self.folder.local
        if local is None:  # objects cannot grow
            self.folder.write(EVENTS, b"\n".join(self._lines) + b"\n")
            return
        try:
            with (local / EVENTS).open("ab") as file:
                file.write(self._lines[-1] + b"\n")
        except OSError as error:
            raise UserError(f"{local / EVENTS}: cannot be written: {files.reason(error)}") from None
