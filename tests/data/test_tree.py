"""Sources in a bucket, behind a real S3 HTTP server on loopback."""

import itertools

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from btray.core.images import ImageError
from btray.data.sources import tree
from btray.data.sources.base import Item
from btray.data.sources.imagefolder import ImageFolder
from btray.data.sources.tree import Tree, fetch, shown
from btray.errors import UserError

NUMBERS = itertools.count()


class Store:
    """A server with one bucket that can be stopped and started again."""

    def __init__(self):
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        self.address = "{}:{}".format(*self.server.get_host_and_port())
        self.client = boto3.client(
            "s3", endpoint_url=f"http://{self.address}", region_name="us-east-1"
        )
        # What is stored outlives a server in this process: a bucket a test.
        self.bucket = f"archive-{next(NUMBERS)}"
        self.client.create_bucket(Bucket=self.bucket)

    def uri(self, path):
        return f"s3://{self.bucket}/{path}?scheme=http&endpoint_override={self.address}&region=us-east-1"

    def put(self, root, prefix):
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            key = f"{prefix}/{path.relative_to(root).as_posix()}"
            self.client.put_object(Bucket=self.bucket, Key=key, Body=path.read_bytes())

    def lock(self, actions):
        """Ask for permission after so many requests; nobody has one."""
        requests.post(f"http://{self.address}/moto-api/reset-auth", str(actions), timeout=10)


@pytest.fixture
def store(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(tree, "_PAUSES", (0.01, 0.01))
    store = Store()
    yield store
    store.lock("inf")
    store.server.stop()


def test_a_bucket_gives_what_the_folder_gives(make_folder, store, load, tmp_path):
    root = make_folder(6, under="Training")
    make_folder(2, under="Testing", seed=1)
    (root / "Training" / "glioma" / ".hidden.png").write_bytes(b"x")
    (root / "Training" / "glioma" / "notes.txt").write_bytes(b"x")
    (root / "Training" / "glioma" / "empty.png").write_bytes(b"")
    store.put(root, "slices")
    assert load(store.uri("slices"), "one").manifest == load(root, "two").manifest


def test_every_kind_of_source_reads_from_a_bucket(store, load, tmp_path, make_dicom, draw):
    for number, label in enumerate(("glioma", "pituitary")):
        (tmp_path / "dicom" / label).mkdir(parents=True)
        for n in range(3):
            data = make_dicom(draw(10 * number + n), PatientID=f"{number}{n}")
            (tmp_path / "dicom" / label / f"{n}.dcm").write_bytes(data)
    store.put(tmp_path / "dicom", "dicom")
    assert load(store.uri("dicom"), "dicom-set").manifest.rows == 6


def test_a_table_in_a_bucket_and_one_that_names_objects(make_folder, store, load, tmp_path):
    root = make_folder(6, classes=("glioma", "pituitary"))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    relative = ["path,label", *(f"{name},{name.split('/')[0]}" for name in names)]
    (root / "table.csv").write_text("\n".join(relative))
    store.put(root, "slices")
    assert load(store.uri("slices/table.csv"), "one").manifest.rows == 12
    lines = [f"{store.uri(f'slices/{name}')},{name.split('/')[0]}" for name in names]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *lines]))
    sources = load(tmp_path / "table.csv", "two").table(["source"])["source"].to_pylist()
    assert sources[0] == f"s3://{store.bucket}/slices/{names[0]}"


def test_an_archive_in_a_bucket(make_folder, store, load, tmp_path):
    import shutil

    root = make_folder(6)
    shutil.make_archive(str(tmp_path / "a"), "zip", root)
    store.client.put_object(
        Bucket=store.bucket, Key="a.zip", Body=(tmp_path / "a.zip").read_bytes()
    )
    assert load(store.uri("a.zip")).manifest.rows == 24


def test_walk_read_and_hash(store, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c d.bin").write_bytes(b"12345")
    store.put(tmp_path, "x")
    here, there = Tree(str(tmp_path)), Tree(store.uri("x"))
    assert here.walk() == there.walk()
    for one in (here, there):
        assert one.read("a/b/c d.bin") == b"12345"
        assert one.head("a/b/c d.bin", 2) == b"12"
    assert here.hash("a/b/c d.bin") == there.hash("a/b/c d.bin")


def test_an_object_that_is_missing_or_too_large(store, monkeypatch):
    store.client.put_object(Bucket=store.bucket, Key="x/a", Body=b"12345")
    with pytest.raises(FileNotFoundError):
        Tree(store.uri("x")).read("b")
    monkeypatch.setattr(tree, "MAX_BYTES", 4)
    with pytest.raises(ImageError, match="5 bytes, more than the limit of 4"):
        Tree(store.uri("x")).read("a")


def test_a_place_that_is_not_there(store):
    with pytest.raises(UserError, match=r"^s3://archive-\d+/nothing: no such folder"):
        Tree(store.uri("nothing")).walk()


def test_no_permission_is_one_line(make_folder, store, load):
    store.put(make_folder(6), "slices")
    store.lock(0)
    with pytest.raises(
        UserError, match=r"^s3://archive-\d+/slices: no permission to read it"
    ) as one:
        load(store.uri("slices"))
    assert "\n" not in str(one.value)


def test_permission_lost_while_reading_ends_the_import(make_folder, store, tmp_path):
    store.put(make_folder(2), "slices")
    source = ImageFolder(store.uri("slices"))
    items = source.listing().items
    store.lock(0)
    with pytest.raises(UserError, match="no permission to read it"):
        list(source.read(items[0]))


def test_a_bucket_that_is_gone_ends_the_import_and_a_second_run_succeeds(
    make_folder, store, tmp_path, local_reader
):
    from btray.data.importer import run_import

    store.put(make_folder(6), "slices")
    source = ImageFolder(store.uri("slices"))
    port = int(store.address.rpartition(":")[2])

    def reader(source, items):
        tables = local_reader(source, items)
        yield next(tables)
        store.server.stop()
        yield from tables

    with pytest.raises(UserError, match=r"cannot be read after 3 tries.*run the import again"):
        run_import(source, str(tmp_path / "dataset"), reader=reader)
    assert not (tmp_path / "dataset").exists()
    store.server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    store.server.start()  # what it holds outlives it in this process
    manifest = run_import(source, str(tmp_path / "dataset"), reader=local_reader).manifest
    assert (manifest.rows, manifest.quarantined) == (24, 0)


def test_a_bucket_emptied_meanwhile_is_no_list_of_missing_files(store):
    store.client.put_object(Bucket=store.bucket, Key="x/a", Body=b"1")
    place = Tree(store.uri("x"))
    place.walk()
    store.client.delete_object(Bucket=store.bucket, Key="x/a")
    with pytest.raises(UserError, match="not there any more"):
        place.read("a")


def test_what_fails_once_is_tried_again(store, monkeypatch):
    store.client.put_object(Bucket=store.bucket, Key="x/a", Body=b"12345")
    calls = []

    def fails_once():
        calls.append(1)
        if len(calls) == 1:
            raise OSError("AWS Error SLOW_DOWN")
        return b"ok"

    assert tree._patiently("s3://archive/x", fails_once) == b"ok"
    assert len(calls) == 2


@pytest.mark.parametrize("way", ["locked", "stopped"])
def test_messages_name_no_object(store, way):
    store.client.put_object(Bucket=store.bucket, Key="x/Xylophon/a", Body=b"1")
    place = Tree(store.uri("x"))
    if way == "locked":
        store.lock(0)
    else:
        store.server.stop()
    with pytest.raises(UserError, match=rf"^s3://{store.bucket}/x: (no permission|cannot)") as one:
        place.read("Xylophon/a")
    assert "Xylophon" not in str(one.value)
    if way == "stopped":
        port = int(store.address.rpartition(":")[2])
        store.server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        store.server.start()


def test_a_file_system_s_text_is_not_repeated(store, local_reader):
    def fails():
        raise OSError("AWS Error SLOW_DOWN for key 'Xylophon'")

    with pytest.raises(UserError, match="after 3 tries: SLOW_DOWN; run"):
        tree._patiently("s3://archive/x", fails)

    class Failing:
        def read(self, item):
            raise OSError("no way to Xylophon")

    (table,) = local_reader(Failing(), (Item("a", "glioma"),))
    assert table["reason"].to_pylist() == ["cannot be read: OSError"]


@pytest.mark.cluster
def test_a_worker_that_loses_the_bucket_tells_it_in_one_line(cluster, make_folder, store, tmp_path):
    from btray.data.importer import run_import
    from btray.data.reading import read_source

    store.put(make_folder(6), "slices")
    source = ImageFolder(store.uri("slices"))

    def reader(source, items):
        store.lock(0)
        yield from read_source(source, items)

    with pytest.raises(UserError, match="no permission to read it") as caught:
        run_import(source, str(tmp_path / "dataset"), reader=reader)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is UserError


def test_keys_in_a_uri_are_not_shown():
    assert shown("s3://key:secret@bucket/a?region=x") == "s3://bucket/a"
    assert shown("/a@b/c?d") == "/a@b/c?d"


def test_a_local_file_uri(tmp_path):
    (tmp_path / "a b").write_bytes(b"x")
    assert fetch(f"file://{tmp_path}/a b") == b"x"
