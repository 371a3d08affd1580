import pytest

from btray.config import Config
from btray.errors import UserError
from btray.train.storage import RunFolder


@pytest.fixture
def config(tmp_path):
    return Config.model_validate({"run": {"storage": str(tmp_path / "runs"), "name": "first"}})


def test_a_new_run_keeps_its_configuration(config, tmp_path):
    folder, settled = RunFolder.create(config)
    assert folder.local == tmp_path / "runs" / "first"
    again, read, _ = RunFolder.reopen(str(folder.local))
    assert again == folder
    assert read == settled


def test_a_run_is_named_after_its_model_and_time(tmp_path):
    folder, settled = RunFolder.create(
        Config.model_validate({"run": {"storage": str(tmp_path)}, "model": {"name": "resnet18"}})
    )
    assert folder.name.startswith("resnet18-2")
    assert settled.run.name == folder.name


def test_places_are_kept_independently_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = {"run": {"storage": "runs", "name": "first"}, "data": {"dataset": "some/data"}}
    _, settled = RunFolder.create(Config.model_validate(relative))
    assert settled.run.storage == str(tmp_path / "runs")
    assert settled.data.dataset == str(tmp_path / "some" / "data")


def test_a_moved_run_is_resumed_where_it_is(config, tmp_path):
    RunFolder.create(config)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    folder, settled, _ = RunFolder.reopen(str(tmp_path / "elsewhere" / "first"))
    assert folder.local == tmp_path / "elsewhere" / "first"
    assert settled.run.storage == str(tmp_path / "elsewhere")


def test_a_name_in_use_is_refused(config):
    RunFolder.create(config)
    with pytest.raises(UserError, match="there already"):
        RunFolder.create(config)


def test_no_run_to_resume(tmp_path):
    with pytest.raises(UserError, match="no run to resume"):
        RunFolder.reopen(str(tmp_path))


def test_unwritable_storage(tmp_path):
    (tmp_path / "file").write_text("")
    config = Config.model_validate({"run": {"storage": str(tmp_path / "file"), "name": "a"}})
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder.create(config)


def test_a_run_is_finished_when_its_bundle_is_there(config):
    folder, _ = RunFolder.create(config)
    assert RunFolder.reopen(folder.uri)[0] == folder
    (folder.local / "bundle").mkdir()
    (folder.local / "bundle" / "bundle.json").write_text("{}")
    with pytest.raises(UserError, match="this run is finished"):
        RunFolder.reopen(folder.uri)
