import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from btray.data.dataset import SCHEMA
from btray.data.importer import quarantine
from btray.data.sources.detect import SourceOptions, open_source
from btray.errors import UserError


@pytest.fixture
def table(make_folder, tmp_path):
    """A manifest of 12 images of two classes, beside their folder."""
    make_folder(6, classes=("glioma", "pituitary"))
    lines = [
        f"images/{label}/{label}-{n:03d}.png,{label}"
        for label in ("glioma", "pituitary")
        for n in range(6)
    ]
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(["path,label", *lines]) + "\n")
    return path


def rows_of(dataset):
    return dataset.table(SCHEMA.names).to_pylist()


def edit(table, header, line):
    """Give every row more cells; `line` makes them of the row's number."""
    lines = table.read_text().splitlines()
    body = [f"{text},{line(n)}" for n, text in enumerate(lines[1:])]
    table.write_text("\n".join([f"{lines[0]},{header}", *body]))


def test_paths_are_relative_to_the_table(table, load):
    dataset = load(table)
    rows = rows_of(dataset)
    assert (dataset.manifest.source, len(rows)) == ("manifest", 12)
    assert rows[0]["source"] == "images/glioma/glioma-000.png"
    assert rows[0]["image"] == (table.parent / rows[0]["source"]).read_bytes()


def test_absolute_paths_and_file_uris(table, load):
    lines = table.read_text().splitlines()
    lines[1:7] = [f"{table.parent}/{line}" for line in lines[1:7]]
    lines[7:] = [f"file://{table.parent}/{line}" for line in lines[7:]]
    table.write_text("\n".join(lines))
    assert load(table).manifest.rows == 12


def test_all_columns(table, load):
    splits = ("Training", "val", "test")
    edit(
        table,
        "patient_id,split,fold,plane,sequence,sex,age",
        lambda n: f"Jane Doe {n},{splits[n % 3]},{n % 5},AXIAL,t1CE,f,{88 + n}",
    )
    dataset = load(table)
    rows = rows_of(dataset)
    assert {row["official_split"] for row in rows} == {"train", "validation", "test"}
    assert {row["fold"] for row in rows} == {0, 1, 2, 3, 4}
    assert {(r["plane"], r["sequence"], r["sex"]) for r in rows} == {("axial", "T1ce", "F")}
    assert {row["age"] for row in rows} == {88, 89, 90}
    assert len({row["patient_id"] for row in rows}) == 12
    assert "Jane" not in repr([{**row, "image": None} for row in rows])


def test_parquet(table, load, tmp_path):
    lines = [line.split(",") for line in table.read_text().splitlines()]
    columns = dict(zip(lines[0], zip(*lines[1:], strict=True), strict=True))
    target = tmp_path / "manifest.parquet"
    ages = pa.array([50, None] * 6, pa.int64())
    pyarrow.parquet.write_table(pa.table({**columns, "age": ages}), target)
    rows = rows_of(load(target))
    assert [row["age"] for row in rows] == [50, None] * 6


def test_excels_byte_order_mark_and_quotes(table, load):
    cells = [line.split(",") for line in table.read_text().splitlines()]
    text = "".join(f'"{path}","{label}"\r\n' for path, label in cells)
    table.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load(table).manifest.rows == 12


def test_missing_files_are_quarantined(table, load):
    with table.open("a") as stream:
        stream.write("images/gone.png,glioma\n")
    (entry,) = quarantine(load(table))
    assert vars(entry) == {
        "path": "images/gone.png",
        "code": "missing",
        "reason": "there is no such file",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; its first line names the columns"),
        ("path,label\n", "no rows"),
        ("file,label\na.png,glioma\n", "no column path; it has: file, label"),
        ("path,label,patientid\na.png,glioma,1\n", "unknown column 'patientid'"),
        ("path,label,label\na.png,glioma,1\n", "column 'label' is there twice"),
        ("path,label\na.png,glioma\nb.png\n", "line 3: 1 cells, but 2 columns"),
        ("path,label\na.png,glioma,x\n", "line 2: 3 cells, but 2 columns"),
        ("path,label\na.png,\n", "line 2: the label is empty"),
        ("path,label\n,glioma\n", "line 2: the path is empty"),
        ("path,label\na.png,glioma\n\na.png,glioma\n", "line 4: the same path as on line 2"),
        ("path,label\na.png,melanoma\n", "line 2: the label 'melanoma' is none of .*--classes"),
        ("path,label,split\na.png,glioma,dev\n", "line 2: unknown split 'dev'"),
        ("path,label,fold\na.png,glioma,-1\n", "line 2: fold '-1' is no whole number"),
        ("path,label,age\na.png,glioma,old\n", "line 2: age 'old' is no whole number"),
        ("path,label,plane\na.png,glioma,top\n", "line 2: unknown plane 'top'"),
        ('path,label\n"a.png,glioma\n', "line 2: not valid CSV"),
        (b"path,label\n\xe4.png,glioma\n", "line 2: not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path, load, text, message):
    path = tmp_path / "m.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_no_table_and_no_parquet(tmp_path, load):
    with pytest.raises(UserError, match=r"m.csv: cannot be read: No such file"):
        load(tmp_path / "m.csv")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"m.parquet: not valid Parquet"):
        load(tmp_path / "m.parquet")


def test_ones_own_classes(table, load):
    table.write_text(table.read_text().replace(",pituitary", ",Metastasis"))
    dataset = load(table, class_names=("metastasis", "glioma"))
    assert dataset.manifest.class_names == ("metastasis", "glioma")


def test_a_patient_in_two_official_splits(table, load, tmp_path):
    patients = {1: 0, 7: 6}  # the second slice of two patients stands in another split
    edit(
        table,
        "patient_id,split",
        lambda n: f"p{patients.get(n, n)},{('test', 'train', 'validation')[n % 3]}",
    )
    with pytest.raises(UserError, match=r"2 patients stand in more than one .*2 in test and train"):
        load(table)
    assert not (tmp_path / "dataset").exists()
    dataset = load(table, exclude_from_train_what_is_in_test=True)
    excluded = dataset.table(["source", "official_split"], split="excluded").to_pylist()
    assert excluded == [
        {"source": "images/glioma/glioma-001.png", "official_split": "train"},
        {"source": "images/pituitary/pituitary-001.png", "official_split": "train"},
    ]


def test_what_the_table_says_is_part_of_what_identifies_it(table, load):
    first = load(table)
    assert load(table).manifest == first.manifest
    edit(table, "plane", lambda n: "axial")
    with pytest.raises(UserError, match="--overwrite"):
        load(table)


def test_no_patient_in_what_is_written(table, load, tmp_path):
    edit(table, "patient_id", lambda n: f"Xylophon {n}")
    load(table)
    for path in (tmp_path / "dataset").rglob("*.json*"):
        assert "xylophon" not in json.dumps(path.read_text()).lower()


def test_rows_without_a_patient_are_told_of(table):
    edit(table, "patient_id", lambda number: "" if number % 3 else f"p{number}")
    with open_source(str(table), SourceOptions()) as source:
        (note,) = source.listing().notes
    assert note.startswith("8 of 12 have no patient_id")
