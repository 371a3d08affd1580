import io
import json
import tracemalloc
import zlib
from collections import defaultdict

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from btray.data import importer, reading
from btray.data.dataset import SCHEMA, Dataset
from btray.data.importer import ImportOptions, quarantine, run_import
from btray.data.sources.imagefolder import ImageFolder
from btray.errors import UserError


@pytest.fixture
def load(local_reader, tmp_path):
    def run(root, destination=None, **options):
        return run_import(
            ImageFolder(str(root)),
            str(destination or tmp_path / "dataset"),
            ImportOptions(**options),
            reader=local_reader,
        )

    return run


@pytest.fixture
def dataset(tmp_path):
    return lambda: Dataset.open(str(tmp_path / "dataset"))


def huge_png(side):
    """A valid PNG of side x side pixels in a few kilobytes, as a decompression bomb is."""

    def chunk(kind, body):
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = side.to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def gif(draw):
    frames = [Image.fromarray(draw(seed)) for seed in (1, 2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def leftovers(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "images")


def test_rows_keep_bytes_labels_and_order(make_folder, load, dataset):
    root = make_folder(6)
    manifest = load(root).manifest
    table = dataset().table(SCHEMA.names)
    assert table.schema.equals(SCHEMA)
    assert manifest.rows == table.num_rows == 24
    names = table["source"].to_pylist()
    assert names == sorted(names)
    for name, data, label in zip(
        names, table["image"].to_pylist(), table["label"].to_pylist(), strict=True
    ):
        assert data == (root / name).read_bytes()
        assert label == name.split("/")[0]


def test_manifest_counts_are_the_rows(make_folder, load, dataset):
    manifest = load(make_folder(8)).manifest
    rows = dataset().table(["split", "label"]).to_pylist()
    for split, counts in manifest.counts.items():
        for label, count in counts.items():
            assert count == sum(row == {"split": split, "label": label} for row in rows)
    assert sum(sum(counts.values()) for counts in manifest.counts.values()) == 32
    assert manifest.class_names == ("glioma", "meningioma", "notumor", "pituitary")


def test_no_group_or_picture_stands_in_two_splits(make_folder, load, dataset, draw, encoded):
    root = make_folder(8)
    for number in range(8):
        copy = encoded(draw(number), "JPEG", quality=70)
        (root / "glioma" / f"copy-{number}.jpg").write_bytes(copy)
    load(root)
    places = defaultdict(set)
    for row in dataset().table(["group_id", "pixel_sha256", "split"]).to_pylist():
        places[row["group_id"]].add(row["split"])
        places[row["pixel_sha256"]].add(row["split"])
    assert all(len(splits) == 1 for splits in places.values())
    assert dataset().manifest.near_duplicates == {"groups": 8, "images": 16}


def test_official_test_is_kept_and_twins_are_excluded(make_folder, load, dataset):
    root = make_folder(6, under="Training")
    make_folder(2, under="Testing", seed=1)
    twin = root / "Training" / "glioma" / "twin.png"
    twin.write_bytes((root / "Testing" / "glioma" / "glioma-000.png").read_bytes())
    manifest = load(root).manifest
    assert manifest.split.official_test
    assert sum(manifest.counts["test"].values()) == 8
    assert manifest.counts["excluded"] == {"glioma": 1}
    excluded = dataset().table(["source"], split="excluded").to_pylist()
    assert excluded == [{"source": "Training/glioma/twin.png"}]


def test_label_conflicts_are_counted(make_folder, load):
    root = make_folder(6)
    (root / "glioma" / "same.png").write_bytes((root / "notumor" / "notumor-000.png").read_bytes())
    manifest = load(root).manifest
    assert manifest.label_conflicts == 1
    assert manifest.exact_duplicates == {"groups": 1, "images": 2}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("zero.png", "empty"),
        ("text.jpg", "not_an_image"),
        ("truncated.jpg", "unreadable"),
        ("dot.png", "too_small"),
        ("bomb.png", "too_large"),
        ("moving.gif", "several_frames"),
    ],
)
def test_bad_files_are_quarantined(make_folder, load, dataset, draw, encoded, name, code):
    root = make_folder(6)
    jpeg = encoded(draw(99, 64), "JPEG")
    contents = {
        "zero.png": lambda: b"",
        "text.jpg": lambda: b"this is no picture",
        "truncated.jpg": lambda: jpeg[: len(jpeg) // 2],
        "dot.png": lambda: encoded(draw(1, 1)),
        "bomb.png": lambda: huge_png(20_000),
        "moving.gif": lambda: gif(draw),
    }
    (root / "glioma" / name).write_bytes(contents[name]())
    assert load(root).manifest.quarantined == 1
    (entry,) = quarantine(dataset())
    assert (entry.path, entry.code) == (f"glioma/{name}", code)
    assert entry.reason
    assert dataset().manifest.rows == 24


def test_a_decompression_bomb_takes_little_memory(make_folder):
    root = make_folder(1)
    (root / "glioma" / "bomb.png").write_bytes(huge_png(20_000))
    items = pa.Table.from_pylist([{"name": "glioma/bomb.png", "label": "glioma"}])
    tracemalloc.start()
    (table,) = reading.read_items(items, ImageFolder(str(root)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table["code"].to_pylist() == ["too_large"]
    assert peak < 10_000_000


def test_file_that_goes_away_while_reading_is_quarantined(make_folder, tmp_path, local_reader):
    root = make_folder(6)

    def reader(source, items):
        (root / "glioma" / "glioma-003.png").unlink()
        yield from local_reader(source, items)

    target = str(tmp_path / "dataset")
    manifest = run_import(ImageFolder(str(root)), target, reader=reader).manifest
    assert (manifest.rows, manifest.quarantined) == (23, 1)


def test_strict_names_the_first_file_and_the_count(make_folder, load, tmp_path):
    root = make_folder(6)
    (root / "glioma" / "bad.png").write_bytes(b"")
    (root / "notumor" / "bad.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 files cannot be used.*glioma/bad.png: the file is em"):
        load(root, strict=True)
    assert leftovers(tmp_path) == []


def test_strict_holds_for_a_data_set_that_is_there_already(make_folder, load):
    root = make_folder(6)
    (root / "glioma" / "bad.png").write_bytes(b"")
    load(root)
    with pytest.raises(UserError, match="1 file cannot be used"):
        load(root, strict=True)


def test_nothing_usable(make_folder, load, tmp_path):
    root = make_folder(2)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable image; the first: glioma/glioma-000\.png"):
        load(root)
    assert leftovers(tmp_path) == []


def test_class_with_fewer_images_than_splits(make_folder, load, tmp_path):
    root = make_folder(5)
    for path in sorted((root / "pituitary").iterdir())[2:]:
        path.unlink()
    with pytest.raises(UserError, match="class pituitary has 2 groups"):
        load(root)
    assert leftovers(tmp_path) == []


def test_same_import_again_does_nothing(make_folder, load, dataset, tmp_path):
    root = make_folder(6)
    first = load(root)
    before = (tmp_path / "dataset" / "manifest.json").stat().st_mtime_ns
    second = load(root)
    assert (first.unchanged, second.unchanged) == (False, True)
    assert second.manifest == first.manifest
    assert (tmp_path / "dataset" / "manifest.json").stat().st_mtime_ns == before


def test_the_same_source_gives_the_same_files(make_folder, load, tmp_path):
    root = make_folder(6)
    one = load(root, tmp_path / "one").manifest
    other = load(root, tmp_path / "other").manifest
    assert one == other
    for path in sorted((tmp_path / "one").rglob("*.*")):
        twin = tmp_path / "other" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == twin.read_bytes()


def test_a_data_set_with_rows_missing_is_repaired_on_request(make_folder, load, dataset, tmp_path):
    root = make_folder(6)
    load(root)
    next((tmp_path / "dataset" / "rows").iterdir()).unlink()
    with pytest.raises(UserError, match="--overwrite repairs it"):
        load(root)
    assert not load(root, overwrite=True).unchanged
    assert dataset().table(["split"]).num_rows == 24


def test_another_content_needs_overwrite(make_folder, load, tmp_path):
    root = make_folder(6)
    old = load(root).manifest
    with pytest.raises(UserError, match="--overwrite"):
        load(root, seed=1)
    assert load(root, seed=1, overwrite=True).manifest.content_hash != old.content_hash
    assert leftovers(tmp_path) == ["dataset"]


def test_a_failed_overwrite_keeps_the_old_data_set(make_folder, load, dataset, tmp_path):
    root = make_folder(6)
    old = load(root).manifest
    (root / "glioma" / "bad.png").write_bytes(b"")
    with pytest.raises(UserError):
        load(root, overwrite=True, strict=True)
    assert dataset().manifest == old
    assert leftovers(tmp_path) == ["dataset"]


def test_a_damaged_data_set_can_be_overwritten(make_folder, load, dataset, tmp_path):
    root = make_folder(6)
    load(root)
    (tmp_path / "dataset" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load(root)
    load(root, overwrite=True)
    assert dataset().manifest.rows == 24


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_replaced(make_folder, load, tmp_path, overwrite):
    root = make_folder(6)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not just a btray data set \(holds thesis.tex\)"):
        load(root, overwrite=overwrite)
    assert (tmp_path / "dataset" / "thesis.tex").exists()


def test_a_file_as_destination(make_folder, load, tmp_path):
    (tmp_path / "dataset").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        load(make_folder(6), overwrite=True)


def test_an_empty_folder_as_destination(make_folder, load, dataset, tmp_path):
    (tmp_path / "dataset").mkdir()
    load(make_folder(6))
    assert dataset().manifest.rows == 24


@pytest.mark.parametrize("inside", ["", "out", "glioma/out"])
def test_destination_inside_the_source(make_folder, load, inside):
    root = make_folder(6)
    with pytest.raises(UserError):
        load(root, root / inside, overwrite=True)


def test_unwritable_destinations(make_folder, load, tmp_path):
    root = make_folder(6)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/deep/dataset: cannot write the data set"):
        load(root, tmp_path / "file" / "deep" / "dataset")
    with pytest.raises(UserError, match="cannot write the data set"):
        load(root, "/proc/btray/dataset")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_import_leaves_nothing(make_folder, tmp_path, local_reader, error):
    root = make_folder(6)

    def reader(source, items):
        yield next(local_reader(source, items))
        raise error

    with pytest.raises((KeyboardInterrupt, UserError)):
        run_import(ImageFolder(str(root)), str(tmp_path / "a" / "b" / "dataset"), reader=reader)
    assert leftovers(tmp_path) == []


def test_progress_counts_every_image(make_folder, tmp_path, local_reader):
    seen = []
    source = ImageFolder(str(make_folder(6)))
    run_import(
        source,
        str(tmp_path / "dataset"),
        progress=lambda *state: seen.append(state),
        reader=local_reader,
    )
    assert [state for state in seen if state[0] == "read"][-1] == ("read", 24, 24)
    assert [phase for phase, done, _ in seen if done == 0] == ["hash", "read", "group", "write"]


def test_quarantine_list_is_json_lines(make_folder, load, tmp_path):
    root = make_folder(6)
    (root / "glioma" / "头.png").write_bytes(b"")
    load(root)
    lines = (tmp_path / "dataset" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"path": "glioma/头.png", "code": "empty", "reason": "the file is empty"}
    ]


@pytest.mark.cluster
def test_ray_reads_what_the_process_itself_reads(cluster, make_folder, load, tmp_path):
    root = make_folder(40)
    (root / "glioma" / "bad.png").write_bytes(b"no image")
    expected = load(root, tmp_path / "local").manifest
    source = ImageFolder(str(root))
    manifest = importer.import_dataset(source, str(tmp_path / "ray"))
    assert manifest == expected
    assert manifest.quarantined == 1


@pytest.mark.cluster
def test_ray_data_settings_stay_as_they_were(cluster, make_folder, tmp_path):
    from ray.data import DataContext

    context = DataContext.get_current()
    before = (context.enable_progress_bars, context.execution_options.preserve_order)
    importer.import_dataset(ImageFolder(str(make_folder(6))), str(tmp_path / "ray"))
    after = DataContext.get_current()
    assert (after.enable_progress_bars, after.execution_options.preserve_order) == before


@pytest.mark.real
@pytest.mark.cluster
def test_the_real_slices_have_155_groups_of_identical_images(cluster, real_slices, tmp_path):
    manifest = importer.import_dataset(ImageFolder(str(real_slices)), str(tmp_path / "real"))
    assert manifest.rows == 5708
    assert manifest.exact_duplicates == {"groups": 155, "images": 362}
    assert manifest.label_conflicts == 0
    table = Dataset.open(str(tmp_path / "real")).table(["group_id", "pixel_sha256", "split"])
    for key in ("group_id", "pixel_sha256"):
        pairs = set(zip(table[key].to_pylist(), table["split"].to_pylist(), strict=True))
        assert len(pairs) == len(set(table[key].to_pylist()))
    files = sorted((tmp_path / "real" / "rows").iterdir())
    assert len(files) == 8
    assert pyarrow.parquet.ParquetFile(files[0]).num_row_groups == 2
