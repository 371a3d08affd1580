import sys
import types

import pytest
import requests

from btray.data.sources.kaggle import download
from btray.errors import UserError


@pytest.fixture
def kagglehub(monkeypatch):
    """kagglehub 1.0 as it is called: `dataset_download(handle, path=None, *, output_dir)`."""
    module = types.ModuleType("kagglehub")
    module.calls = []

    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        module.calls.append((handle, output_dir))
        return output_dir

    module.dataset_download = dataset_download
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


def failing(error):
    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        raise error

    return dataset_download


def test_handle_and_folder_are_passed_on(kagglehub, tmp_path):
    assert download("kaggle:owner/data-set", str(tmp_path / "new")) == tmp_path / "new"
    assert kagglehub.calls == [("owner/data-set", str(tmp_path / "new"))]


@pytest.mark.parametrize("source", ["owner/set", "kaggle:set", "kaggle:a/b/c", "kaggle:../x/y", ""])
def test_another_form(source, tmp_path):
    with pytest.raises(UserError, match="write kaggle:owner/dataset"):
        download(source, str(tmp_path / "new"))


def test_a_folder_in_use(kagglehub, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not free"):
        download("kaggle:a/b", str(tmp_path))
    assert kagglehub.calls == []


def test_without_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(UserError, match=r"pip install 'btray\[kaggle\]'"):
        download("kaggle:a/b", str(tmp_path / "new"))


def response(status):
    found = requests.Response()
    found.status_code = status
    return requests.HTTPError("details\nand more", response=found)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (response(403), "Kaggle refuses"),
        (response(404), "no such data set"),
        (response(500), "the download failed: details"),
        (requests.ConnectionError("HTTPSConnectionPool(…)"), "cannot be reached"),
        (ValueError("bad"), "the download failed: bad"),
    ],
)
def test_failures_are_one_line(kagglehub, tmp_path, error, message):
    kagglehub.dataset_download = failing(error)
    with pytest.raises(UserError, match=f"kaggle:a/b: .*{message}") as caught:
        download("kaggle:a/b", str(tmp_path / "new"))
    assert "\n" not in str(caught.value)
