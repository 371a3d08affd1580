"""Checkpoints on their way to storage, and the record of those that have arrived."""

import json
import logging
import shutil
import time
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import Checkpoint, UserCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from btray.errors import UserError

if TYPE_CHECKING:
    from btray.train.storage import RunFolder

RECORD = CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
"""Ray Train's list of a run's checkpoints: only those in it count."""
COPY = "checkpoints.last.json"
"""The record as it last was whole: Ray overwrites its own in place."""
_WAITS = (1.0, 4.0, 15.0)
"""Seconds before an upload is tried again."""
_log = logging.getLogger("btray")


def upload(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Copy a checkpoint's files to the run's storage, again when that fails for a while.

    The last failure is raised, with nothing of the checkpoint left behind.
    """
    storage = ray.train.get_context().get_storage()
    for wait in (*_WAITS, None):
        try:
            kept: Checkpoint = storage.persist_current_checkpoint(checkpoint, name)
            return kept
        except OSError as error:
            if wait is None:
                _remove(storage, name)
                shutil.rmtree(checkpoint.path, ignore_errors=True)
                reason = " ".join(str(error.strerror or error).split())
                raise OSError(f"the checkpoint cannot be written: {reason}") from None
            _log.warning("a checkpoint cannot be written now (%s); trying again", error)
            time.sleep(wait)
    raise AssertionError("unreachable: the last try returns or raises")


def _remove(storage: Any, name: str) -> None:  # noqa: ANN401 - Ray's StorageContext
    """Give back the space of a checkpoint that is not whole."""
    try:
        storage.storage_filesystem.delete_dir(storage.build_checkpoint_path_from_name(name))
    except OSError as error:  # storage that cannot be reached: the record does not have it
        _log.warning("the unfinished %s cannot be removed: %s", name, error)


class RecordKeeper(UserCallback):
    """Keeps a whole copy of the record, whatever happens while Ray writes it."""

    def __init__(self, folder: "RunFolder") -> None:
        self.folder = folder

    def after_report(
        self,
        run_context: Any,  # noqa: ANN401, ARG002
        metrics: list[dict[str, Any]],  # noqa: ARG002
        checkpoint: Checkpoint | None,
    ) -> None:
        """Copy what Ray has just written."""
        if checkpoint is not None:
            try:
                self.folder.write(COPY, self.folder.read(RECORD))
            except (OSError, UserError) as error:  # the next one is copied again
                _log.warning("the record of checkpoints cannot be copied: %s", error)


def mend_record(folder: "RunFolder") -> None:
    """Put the whole copy in place of a record that was torn while it was written."""
    record, copy = folder.read(RECORD), folder.read(COPY)
    if _whole(record):
        folder.write(COPY, record)
    elif _whole(copy):
        folder.write(RECORD, copy)
    elif folder.exists(RECORD):  # torn at the first checkpoint: there is none before it
        folder.remove(RECORD)


def _whole(record: bytes) -> bool:
    try:
        return bool(json.loads(record))
    except ValueError:
        return False
