import json
from types import SimpleNamespace

import pytest
import ray.train

from btray.config import resolve_config
from btray.train import checkpoints
from btray.train.checkpoints import COPY, RECORD, RecordKeeper, mend_record, upload
from btray.train.storage import RunFolder


@pytest.fixture
def folder(tmp_path):
    config = resolve_config({"run": {"storage": str(tmp_path), "name": "run"}})
    return RunFolder.create(config)[0]


def test_a_torn_record_is_mended_from_the_last_whole_one(folder):
    whole = json.dumps({"checkpoint_results": ["one"]}).encode()
    folder.write(RECORD, whole)
    RecordKeeper(folder).after_report(None, [], object())
    (folder.local / RECORD).write_bytes(whole[:10])  # as a full disk leaves it
    mend_record(folder)
    assert folder.read(RECORD) == whole == folder.read(COPY)


def test_a_record_torn_at_the_first_checkpoint_is_none(folder):
    folder.write(RECORD, b"")
    mend_record(folder)
    assert not folder.exists(RECORD)


def test_a_whole_record_is_left_and_copied(folder):
    folder.write(COPY, b'{"old": 1}')
    folder.write(RECORD, b'{"new": 1}')
    mend_record(folder)
    assert folder.read(RECORD) == folder.read(COPY) == b'{"new": 1}'


def test_an_upload_that_fails_is_tried_again_and_leaves_nothing_half(tmp_path, monkeypatch):
    failures = []

    class Storage:
        storage_filesystem = SimpleNamespace(delete_dir=lambda path: failures.append(path))

        def persist_current_checkpoint(self, checkpoint, name):
            failures.append(name)
            raise OSError(28, "No space left on device")

        def build_checkpoint_path_from_name(self, name):
            return f"run/{name}"

    monkeypatch.setattr(checkpoints, "_WAITS", (0.0, 0.0))
    context = SimpleNamespace(get_storage=Storage)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    local = tmp_path / "local"
    local.mkdir()
    with pytest.raises(OSError, match="the checkpoint cannot be written: No space left"):
        upload(ray.train.Checkpoint.from_directory(str(local)), "checkpoint_1")
    assert failures == ["checkpoint_1"] * 3 + ["run/checkpoint_1"]
    assert not local.exists()
