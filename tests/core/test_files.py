from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from btray.core import files
from btray.errors import UserError

NAME = st.text("abcXYZ019._- ü", min_size=1, max_size=8).filter(lambda name: name.strip("."))
QUERY = "endpoint_override=http%3A%2F%2Flocalhost%3A9000&scheme=http"


@pytest.mark.parametrize(
    ("place", "joined"),
    [
        ("runs", "runs/a"),
        ("runs/", "runs/a"),
        ("/", "/a"),
        ("", "a"),
        ("what?", "what?/a"),
        ("s3://bucket", "s3://bucket/a"),
        ("s3://bucket/", "s3://bucket/a"),
        ("s3://", "s3://a"),
        ("s3://bucket/p?x=1/2", "s3://bucket/p/a?x=1/2"),
        ("s3://bucket/p/?x=1", "s3://bucket/p/a?x=1"),
        ("file:///", "file:///a"),
    ],
)
def test_join(place, joined):
    assert files.join(place, "a") == joined


@pytest.mark.parametrize(
    ("uri", "parent", "name"),
    [
        ("/data/set", "/data", "set"),
        ("/data/set/", "/data", "set"),
        ("s3://bucket/p/run", "s3://bucket/p", "run"),
        ("s3://bucket/run/?x=1/2", "s3://bucket?x=1/2", "run"),
        ("s3://bucket", "s3://", "bucket"),
        ("file:///run", "file:///", "run"),
    ],
)
def test_split(uri, parent, name):
    assert files.split(uri) == (parent, name)


@given(
    root=st.sampled_from(["/", "/top", "s3://bucket", "file:///"]),
    names=st.lists(NAME, min_size=1, max_size=4),
    query=st.sampled_from(["", f"?{QUERY}"]),
)
def test_split_undoes_join(root, names, query):
    place = f"{root}{query}" if "://" in root else root
    for name in names[:-1]:
        place = files.join(place, name)
    assert files.split(files.join(place, names[-1])) == (place, names[-1])


def test_a_relative_folder_is_split_from_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.split("runs/first") == (str(tmp_path / "runs"), "first")


def test_absolute_does_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = files.absolute("runs")
    monkeypatch.chdir("/")
    assert place == files.absolute(place) == str(tmp_path / "runs")


def test_absolute_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.absolute("~/runs") == str(tmp_path / "runs")


def test_absolute_leaves_a_uri_as_it_is():
    assert files.absolute(f"s3://bucket/a?{QUERY}") == f"s3://bucket/a?{QUERY}"


def test_resolve_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filesystem, path = files.resolve("data set")
    assert isinstance(filesystem, LocalFileSystem)
    assert path == str(tmp_path / "data set")


def test_resolve_a_file_uri():
    filesystem, path = files.resolve("file:///data%20set/a/")
    assert isinstance(filesystem, LocalFileSystem)
    assert path == "/data set/a"


def test_resolve_a_bucket_with_a_query():
    filesystem, path = files.resolve(f"s3://bucket/a/?{QUERY}&region=eu-west-1")
    assert filesystem.type_name == "s3"
    assert filesystem.region == "eu-west-1"
    assert path == "bucket/a"


@pytest.mark.parametrize(
    "uri",
    [
        "foo://bar",
        "http://example.invalid/bundle",
        "://",
        "file://",
        "file://elsewhere/a",
        "file:///with space",
        "s3:///a",
        "s3://bucket/a?nonsense=1",
        "~no-such-user/a",
        "nul\0byte",
    ],
)
def test_a_nonsense_location_is_one_line_for_the_user(uri):
    with pytest.raises(UserError, match="not a usable location") as caught:
        files.resolve(uri)
    assert "\n" not in str(caught.value)


def test_only_the_first_line_of_a_long_reason_is_told(monkeypatch):
    def fail(uri):
        raise OSError("Unable to load libjvm\ndlopen(/a) failed\ndlopen(/b) failed")

    class FileSystem:
        from_uri = staticmethod(fail)

    monkeypatch.setattr(files.pyarrow.fs, "FileSystem", FileSystem)
    with pytest.raises(UserError) as caught:
        files.resolve("hdfs://host/a")
    assert str(caught.value) == "hdfs://host/a: not a usable location: Unable to load libjvm"


def test_read(tmp_path):
    (tmp_path / "größe 1.bin").write_bytes(b"\x00\xff")
    assert files.read(str(tmp_path / "größe 1.bin")) == b"\x00\xff"


def test_read_an_empty_file_through_a_uri(tmp_path):
    (tmp_path / "empty").touch()
    assert files.read((tmp_path / "empty").as_uri()) == b""


@pytest.mark.parametrize("below", ["missing", "missing/too", "file/below"])
def test_read_what_is_not_there(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        files.read(str(tmp_path / below))


def test_read_a_folder_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        files.read(str(tmp_path))


def test_exists(tmp_path):
    (tmp_path / "file").touch()
    names = (".", "file", "missing", "file/below")
    found = [files.exists(str(tmp_path / name)) for name in names]
    assert found == [True, True, False, False]


def test_what_cannot_be_looked_at_is_the_users_mistake():
    with pytest.raises(UserError, match="cannot be looked at") as caught:
        files.exists("/" + "a" * 300)
    assert "\n" not in str(caught.value)


def test_reason_is_one_line():
    assert files.reason(OSError("first\n  second")) == "first second"
    assert files.reason(FileNotFoundError(2, "No such file", "/a")) == "No such file"


def test_join_agrees_with_pathlib(tmp_path):
    assert Path(files.join(str(tmp_path), "a")) == tmp_path / "a"
