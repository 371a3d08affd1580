import json

import pytest

from btray.data.dataset import Dataset
from btray.data.importer import ImportOptions, run_import
from btray.data.sources.imagefolder import ImageFolder
from btray.errors import UserError


@pytest.fixture
def stored(make_folder, local_reader, tmp_path):
    target = tmp_path / "dataset"
    run_import(ImageFolder(str(make_folder(6))), str(target), ImportOptions(), reader=local_reader)
    return target


def test_rows_of_one_split(stored):
    dataset = Dataset.open(str(stored))
    table = dataset.table(["split"], split="validation")
    assert set(table["split"].to_pylist()) == {"validation"}
    assert table.num_rows == dataset.count("validation") == 4


def test_images_by_source(stored, tmp_path):
    name = "glioma/glioma-001.png"
    assert Dataset.open(str(stored)).images("source", [name]) == {
        name: (tmp_path / "images" / name).read_bytes()
    }


def test_no_data_set(tmp_path):
    with pytest.raises(UserError, match=r"no btray data set \(no manifest.json\)"):
        Dataset.open(str(tmp_path))
    with pytest.raises(UserError, match=r"no btray data set \(nothing is there\)"):
        Dataset.open(str(tmp_path / "mistyped"))


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff\xfe", b'{"schema_version": 1}'])
def test_damaged_manifest(stored, text):
    (stored / "manifest.json").write_bytes(text)
    with pytest.raises(UserError, match="damaged"):
        Dataset.open(str(stored))


def test_newer_schema(stored):
    manifest = json.loads((stored / "manifest.json").read_text())
    (stored / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        Dataset.open(str(stored))


def test_missing_or_damaged_rows(stored):
    part = stored / "rows" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"rows: missing or damaged"):
        Dataset.open(str(stored)).table(["label"])
    part.unlink()
    part.parent.rmdir()
    with pytest.raises(UserError, match=r"rows: missing or damaged"):
        Dataset.open(str(stored)).table(["label"])
