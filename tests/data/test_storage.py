import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from btray.data.dataset import SCHEMA, SCHEMA_VERSION, Dataset, Manifest, SplitRecord
from btray.data.importer import ImportOptions, run_import
from btray.data.sources.base import Rejected
from btray.data.sources.imagefolder import ImageFolder
from btray.data.storage import Destination, _owner, rows_per_part, staged
from btray.errors import UserError

ROWS = pa.Table.from_pylist(
    [{"image": b"x", "label": "glioma", "split": "train", "source": f"{i}"} for i in range(1000)],
    schema=SCHEMA,
)
MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    btray_version="0",
    class_names=("glioma",),
    rows=1000,
    counts={"train": {"glioma": 1000}},
    quarantined=1,
    exact_duplicates={"groups": 0, "images": 0},
    near_duplicates={"groups": 0, "images": 0},
    label_conflicts=0,
    split=SplitRecord(
        seed=0, fractions={"train": 1.0}, official_test=False, assignment_hash="0" * 64
    ),
    source="test",
    source_hash="a",
    content_hash="b",
)


def write(place, rows=ROWS):
    with staged(Destination.parse(str(place))) as staging:
        staging.write_rows(rows)
        staging.write_quarantine([Rejected("a b", "empty", "the file is empty")])
        staging.write_manifest(MANIFEST)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_is_written_can_be_opened(tmp_path):
    write(tmp_path / "dataset")
    assert names(tmp_path) == ["dataset"]
    assert names(tmp_path / "dataset") == ["manifest.json", "quarantine.jsonl", "rows"]
    opened = Dataset.open(str(tmp_path / "dataset"))
    assert opened.manifest == MANIFEST
    assert opened.table(["source"])["source"].to_pylist() == ROWS["source"].to_pylist()
    line = (tmp_path / "dataset" / "quarantine.jsonl").read_text()
    assert json.loads(line) == {"path": "a b", "code": "empty", "reason": "the file is empty"}


def test_many_rows_are_several_files_for_parallel_reading(tmp_path):
    write(tmp_path / "dataset")
    files = sorted((tmp_path / "dataset" / "rows").iterdir())
    assert [path.name for path in files] == [f"part-{n:05d}.parquet" for n in range(8)]
    assert sum(pyarrow.parquet.ParquetFile(path).metadata.num_rows for path in files) == 1000


@pytest.mark.parametrize(
    ("rows", "size", "expected"), [(10, 1000, 10), (800, 1000, 100), (800, 96 * 2**20 * 16, 50)]
)
def test_rows_per_part(rows, size, expected):
    assert rows_per_part(rows, size) == expected


def test_nothing_is_visible_before_the_end(tmp_path):
    with staged(Destination.parse(str(tmp_path / "dataset"))) as staging:
        staging.write_rows(ROWS)
        assert not (tmp_path / "dataset").exists()
    assert (tmp_path / "dataset" / "rows").exists()


@pytest.mark.parametrize("full", ["rows/part-00003.parquet", "manifest.json"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path, full):
    def fill():
        with staged(Destination.parse(str(tmp_path / "dataset"))) as staging:
            (Path(staging.path) / "rows").mkdir()
            # Every write to /dev/full fails with the kernel's own ENOSPC.
            (Path(staging.path) / full).symlink_to("/dev/full")
            staging.write_rows(ROWS)
            staging.write_manifest(MANIFEST)

    with pytest.raises(UserError, match=r"cannot write the data set: .*No space left") as caught:
        fill()
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_full_disk_keeps_the_data_set_that_was_there(tmp_path):
    write(tmp_path / "dataset")

    def fill():
        with staged(Destination.parse(str(tmp_path / "dataset"))) as staging:
            (Path(staging.path) / "manifest.json").symlink_to("/dev/full")
            staging.write_manifest(MANIFEST)

    with pytest.raises(UserError):
        fill()
    assert Dataset.open(str(tmp_path / "dataset")).manifest == MANIFEST


def test_leftovers_of_dead_imports_are_removed_and_of_live_ones_kept(tmp_path):
    mine = f".dataset.partial-{_owner()}"
    dead = mine.replace(f".{os.getpid()}.", f".{dead_process()}.")
    other = dead.replace(".dataset.", ".other.")
    elsewhere = f".dataset.partial-elsewhere.{dead_process()}.00"
    for name in (mine, dead, other, elsewhere):
        (tmp_path / name).mkdir()
    write(tmp_path / "dataset")
    assert names(tmp_path) == sorted([mine, other, elsewhere, "dataset"])


def test_a_data_set_lost_between_two_renames_is_put_back(tmp_path):
    write(tmp_path / "dataset")
    owner = _owner().replace(f".{os.getpid()}.", f".{dead_process()}.")
    (tmp_path / "dataset").rename(tmp_path / f".dataset.replaced-{owner}")

    def fail():
        with staged(Destination.parse(str(tmp_path / "dataset"))):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert Dataset.open(str(tmp_path / "dataset")).manifest == MANIFEST


def test_a_link_as_destination_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "manifest.json").exists()


def test_a_file_uri_is_local(tmp_path):
    write(f"file://{tmp_path}/dataset")
    assert names(tmp_path) == ["dataset"]


@pytest.mark.parametrize("uri", ["nowhere://bucket/x", "s3://"])
def test_a_location_that_cannot_be_used(uri):
    with pytest.raises(UserError, match="not a usable location"):
        Destination.parse(uri)


@pytest.fixture(scope="module")
def bucket():
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        endpoint = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(
            Bucket="slices"
        )
        yield (
            lambda key: (
                f"s3://slices/{key}?scheme=http&region=us-east-1&endpoint_override={host}:{port}"
            )
        )
    server.stop()


def test_a_bucket_as_destination(bucket, make_folder, local_reader):
    source, uri = ImageFolder(str(make_folder(6))), bucket("one/dataset")

    def load(**options):
        return run_import(source, uri, ImportOptions(**options), reader=local_reader)

    assert not load().unchanged
    assert load().unchanged
    with pytest.raises(UserError, match="--overwrite"):
        load(seed=1)
    load(seed=1, overwrite=True)
    opened = Dataset.open(uri)
    assert opened.manifest.split.seed == 1
    assert opened.table(["source"]).num_rows == 24


def test_a_failure_in_a_bucket_leaves_nothing(bucket):
    uri = bucket("two/dataset")

    def fail():
        with staged(Destination.parse(uri)) as staging:
            staging.write_rows(ROWS)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert Destination.parse(uri).existing() is None


def test_control_c_leaves_nothing(tmp_path):
    code = (
        "import sys, time; from btray.data.storage import Destination, staged\n"
        "with staged(Destination.parse(sys.argv[1])) as s: print('in', flush=True); time.sleep(60)"
    )
    target = str(tmp_path / "dataset")
    process = subprocess.Popen(
        [sys.executable, "-c", code, target],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "in\n"
    assert len(names(tmp_path)) == 1
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)
    process.stdout.close()
    assert names(tmp_path) == []


IMPORT = """
import sys
from dataclasses import asdict
import pyarrow as pa
from btray.data.importer import ImportOptions, run_import
from btray.data.reading import read_items
from btray.data.sources.imagefolder import ImageFolder
from btray.errors import UserError

def reader(source, items):
    print("reading", flush=True)
    sys.stdin.readline()
    yield from read_items(pa.Table.from_pylist([asdict(item) for item in items]), source)

options = ImportOptions(seed=int(sys.argv[3]), overwrite=len(sys.argv) > 4)
try:
    run_import(ImageFolder(sys.argv[1]), sys.argv[2], options, reader=reader)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def importing(*arguments):
    """An import in a process of its own, which waits for a line before it reads."""
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORT, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "reading\n"
    return process


def outcome(process):
    printed, _ = process.communicate("go\n", timeout=120)
    return process.returncode, printed


@pytest.mark.parametrize("before", [False, True])
def test_of_two_imports_at_once_the_second_gives_way(make_folder, tmp_path, before):
    root, target = make_folder(6), tmp_path / "dataset"
    overwrite = ("overwrite",) if before else ()
    if before:
        write(target)
    first, second = (importing(root, target, seed, *overwrite) for seed in (1, 2))
    assert outcome(first) == (0, "")
    code, printed = outcome(second)
    assert code == 2
    assert printed.count("\n") == 1
    assert "another import to the same place ended meanwhile" in printed
    assert names(tmp_path) == ["dataset", "images"]
    opened = Dataset.open(str(target))
    assert opened.manifest.split.seed == 1
    assert opened.table(["source"]).num_rows == 24


def test_two_imports_that_end_together_leave_one_whole_data_set(make_folder, tmp_path):
    root, target = make_folder(6), tmp_path / "dataset"
    both = [importing(root, target, seed) for seed in (1, 2)]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    codes = sorted(process.wait(timeout=120) for process in both)
    for process in both:
        process.stdin.close()
        process.stdout.close()
    assert codes == [0, 2]
    assert names(tmp_path) == ["dataset", "images"]
    assert Dataset.open(str(target)).table(["source"]).num_rows == 24


def test_two_imports_to_one_place_in_a_bucket_do_not_mix(bucket):
    place = Destination.parse(bucket("three/dataset"))

    def overtaken(second):
        with staged(place) as first:
            first.write_rows(ROWS.slice(0, 500))
            second.write_rows(ROWS)
            first.write_quarantine([])

    with staged(place) as second:
        with pytest.raises(UserError, match="another import writes there at the same time"):
            overtaken(second)
        second.write_quarantine([])
        second.write_manifest(MANIFEST)
    assert Dataset.open(bucket("three/dataset")).table(["source"]).num_rows == 1000


def test_a_buckets_folder_of_other_rows_is_not_taken_for_a_killed_import(tmp_path):
    rows = tmp_path / "bucket" / "d" / "rows"
    rows.mkdir(parents=True)
    place = Destination("s3://bucket/d", pyarrow.fs.LocalFileSystem(), str(rows.parent), False)
    (rows / "part-0123abcd-00000.parquet").write_bytes(b"")
    assert place.existing() is None
    (rows / "precious.csv").write_text("x")
    with pytest.raises(UserError, match="not free"):
        place.existing()
