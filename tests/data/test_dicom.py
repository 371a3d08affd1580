import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_files
from typer.testing import CliRunner

from btray.cli.data import app
from btray.core.pseudonyms import Pseudonyms
from btray.data.dataset import SCHEMA, Dataset
from btray.data.importer import quarantine
from btray.data.sources.dicom import DicomTree
from btray.errors import UserError

NAME, NUMBER, BORN = "Xylophon^Quirin", "MRN-77310042", "19430917"
SECRETS = ("xylophon", "quirin", "77310042", "19430917", "gundula", "zzyzx")


@pytest.fixture
def tree(tmp_path, make_dicom, draw):
    """Two classes of six patients with two slices; the patients' names are folder names."""
    root = tmp_path / "Xylophon"
    for number, label in enumerate(("glioma", "meningioma")):
        for patient in range(6):
            folder = root / label / f"Quirin {NUMBER}{patient}"
            folder.mkdir(parents=True)
            for instance in range(2):
                pixels = draw(number * 1000 + patient * 10 + instance).astype(np.uint16) * 16
                data = make_dicom(
                    pixels,
                    PatientName=NAME,
                    PatientID=f"{NUMBER}{number}{patient}",
                    PatientBirthDate=BORN,
                    StudyDate="20200101",
                    StudyInstanceUID=f"1.2.{number}.{patient}",
                    SeriesInstanceUID=f"1.2.{number}.{patient}.1",
                    SOPInstanceUID=f"1.2.{number}.{patient}.1.{instance}",
                    ReferringPhysicianName="Gundula^Zzyzx",
                    SeriesDescription="t1_se_tra Xylophon",
                    ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                    MagneticFieldStrength=15000,
                    Manufacturer="SIEMENS",
                    PatientSex="F",
                )
                (folder / f"IM{instance}").write_bytes(data)
    return root


def everything(folder):
    """All bytes of a data set, the columns decompressed, in lower case."""
    from btray.data.dataset import Dataset

    rows = Dataset.open(str(folder)).table(SCHEMA.names).to_pylist()
    files = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    return (repr(rows).encode() + files).lower()


def rows_of(dataset):
    return dataset.table([name for name in SCHEMA.names if name != "image"]).to_pylist()


def test_patients_studies_and_series_are_kept_together(tree, load):
    dataset = load(tree)
    rows = rows_of(dataset)
    assert (dataset.manifest.source, len(rows)) == ("dicom", 24)
    assert len({row["patient_id"] for row in rows}) == 12
    assert len({row["study_id"] for row in rows}) == len({row["series_id"] for row in rows}) == 12
    splits = defaultdict(set)
    for row in rows:
        splits[row["patient_id"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_acquisition_is_kept(tree, load):
    known = {
        (row["plane"], row["sequence"], row["field_strength"], row["vendor"], row["sex"])
        for row in rows_of(load(tree))
    }
    assert known == {("axial", "T1", 1.5, "siemens", "F")}
    assert {row["age"] for row in rows_of(load(tree))} == {76}


@pytest.mark.cluster
def test_no_trace_of_a_patient_anywhere(cluster, tree, tmp_path, make_dicom):
    folder = tree / "glioma" / f"Quirin {NUMBER}0"
    (folder / "Xylophon.txt").write_text("Quirin")
    (folder / "SR").write_bytes(make_dicom(PatientName=NAME, PatientID=NUMBER))
    (folder / "again").symlink_to(tree)
    (folder / "broken").symlink_to("Quirin")
    (folder / "cut").write_bytes((folder / "IM0").read_bytes()[:-1000])
    (tree / "Quirin.dcm").write_bytes(make_dicom(np.ones((32, 32), np.uint16), PatientName=NAME))
    # What the person types names the folder; the rest must not.
    (tmp_path / "link").symlink_to(tree)
    shown = CliRunner().invoke(app, ["import", str(tmp_path / "link"), str(tmp_path / "dataset")])
    assert shown.exit_code == 0, shown.output
    assert "quarantined: 6" in shown.output
    text = everything(tmp_path / "dataset") + shown.output.lower().encode()
    assert [secret for secret in SECRETS if secret.encode() in text] == []


def test_quarantine_names_files_by_their_bytes(tree, load, make_dicom):
    import hashlib

    data = make_dicom(PatientName=NAME)
    (tree / "glioma" / "SR").write_bytes(data)
    (entry,) = quarantine(load(tree))
    assert entry.path == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (entry.code, entry.reason) == ("no_pixels", "holds no pixels (MR Image Storage)")


def test_the_key_decides_the_pseudonyms_and_nothing_else(tree, load, tmp_path, monkeypatch):
    key = tmp_path / "key"
    key.write_text("k" * 32)
    one = load(tree, "one", pseudonym_key_file=str(key))
    two = load(tree, "two", pseudonym_key_file=str(key))
    assert rows_of(one) == rows_of(two)
    monkeypatch.setenv("BTRAY_PSEUDONYM_KEY", "another key of a good length")
    three = load(tree, "three")
    assert three.manifest.source_hash != one.manifest.source_hash
    ids = [{row["patient_id"] for row in rows_of(dataset)} for dataset in (one, three)]
    assert not ids[0] & ids[1]
    # Its rows have other pseudonyms, so it is not taken for the same data set.
    with pytest.raises(UserError, match="other settings"):
        load(tree, "one")
    assert Dataset.open(str(tmp_path / "one")).manifest == one.manifest
    assert b"k" * 32 not in everything(tmp_path / "one")


def test_a_source_shows_no_key():
    assert "secret" not in repr(DicomTree("/x", Pseudonyms(b"secret" * 4)))


def test_a_worker_gets_no_key_and_reads(tree):
    source = DicomTree(str(tree), Pseudonyms(b"secret" * 4))
    packed = pickle.dumps(source)
    assert b"secret" not in packed
    item = source.listing().items[0]
    assert list(pickle.loads(packed).read(item)) == list(source.read(item))


@pytest.mark.parametrize("key", ["patient_id", "study_uid", "series_uid", "sop_uid", "path"])
def test_labels_by_every_identifier(tree, load, tmp_path, key):
    known = {
        "patient_id": lambda n, p, i: f"{NUMBER}{n}{p}",
        "study_uid": lambda n, p, i: f"1.2.{n}.{p}",
        "series_uid": lambda n, p, i: f"1.2.{n}.{p}.1",
        "sop_uid": lambda n, p, i: f"1.2.{n}.{p}.1.{i}",
        "path": lambda n, p, i: f"{('glioma', 'meningioma')[n]}/Quirin {NUMBER}{p}/IM{i}",
    }[key]
    lines = {
        f"{known(n, p, i)},{('pituitary', 'No Tumor')[n]}"
        for n in range(2)
        for p in range(6)
        for i in range(2)
    }
    table = tmp_path / "labels.csv"
    table.write_text("\n".join([f"{key},label", *sorted(lines)]), encoding="utf-8-sig")
    dataset = load(tree, labels=str(table))
    assert {row["label"] for row in rows_of(dataset)} == {"pituitary", "notumor"}
    assert dataset.manifest.rows == 24


def test_labels_without_files_and_files_without_labels_are_told(tree, tmp_path):
    lines = [f"{NUMBER}{n}{p},{('glioma', 'pituitary')[n]}" for n in range(2) for p in range(5)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["patient_id,label", *lines, "nobody,glioma"]))
    found = DicomTree(str(tree), Pseudonyms(b"k" * 32), str(table)).listing()
    assert found.notes == (
        "4 slices have no label and are left out",
        f"{table}: 1 of 11 labels match no file",
    )
    assert [entry.code for entry in found.rejected] == ["no_label"] * 4


def test_no_labels_at_all(tmp_path, make_dicom, load):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(make_dicom(np.ones((32, 32), np.uint16)))
    with pytest.raises(UserError, match=r"nothing to import; the first: .*has no label"):
        load(tmp_path / "tree")


def test_frames_are_rows(tmp_path, make_dicom, draw, load):
    for number, label in enumerate(("glioma", "pituitary")):
        (tmp_path / "tree" / label).mkdir(parents=True)
        for patient in range(3):
            frames = np.stack([draw(number * 100 + patient * 10 + n) for n in range(3)])
            data = make_dicom(frames, PatientID=f"{number}{patient}")
            (tmp_path / "tree" / label / f"{patient}.dcm").write_bytes(data)
    names = [row["source"] for row in rows_of(load(tmp_path / "tree"))]
    assert len(names) == 18
    assert {name.partition("#")[2] for name in names} == {f"frame-00{n}" for n in (1, 2, 3)}


def test_copies_of_one_instance_are_both_kept(tree, load):
    folder = tree / "glioma" / f"Quirin {NUMBER}0"
    (folder / "copy").write_bytes((folder / "IM0").read_bytes())
    dataset = load(tree)
    assert dataset.manifest.rows == 25
    assert dataset.manifest.exact_duplicates == {"groups": 1, "images": 2}


def test_a_study_without_a_patient_id_stays_together(tmp_path, make_dicom, draw):
    for number, label in enumerate(("glioma", "pituitary")):
        (tmp_path / label).mkdir()
        for instance in range(2):
            data = make_dicom(
                draw(number * 10 + instance), PatientID=None, StudyInstanceUID=f"1.{number}"
            )
            (tmp_path / label / str(instance)).write_bytes(data)
    items = DicomTree(str(tmp_path), Pseudonyms(b"k" * 32)).listing().items
    assert len({item.patient_id for item in items}) == 2


def test_every_file_pydicom_ships_is_an_image_or_a_quarantine_row(tmp_path, local_reader, recwarn):
    files = [Path(name) for name in get_testdata_files() if Path(name).is_file()]
    (tmp_path / "tree").mkdir()
    for number, path in enumerate(files):
        (tmp_path / "tree" / f"{number:03d}-{path.name}").write_bytes(path.read_bytes())
    names = sorted(path.name for path in (tmp_path / "tree").iterdir())
    labels = [f'"{name}",{("glioma", "pituitary")[n % 2]}' for n, name in enumerate(names)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label", *labels]))
    source = DicomTree(str(tmp_path / "tree"), Pseudonyms(b"k" * 32), str(table), True)
    found = source.listing()
    tables = [table.to_pylist() for table in local_reader(source, found.items)]
    rows = [row for part in tables for row in part]
    refused = [row for row in rows if row.get("code")]
    assert len(found.items) + len(found.rejected) == len(files) > 70
    assert len(rows) >= len(found.items)
    assert len(rows) - len(refused) >= 50
    shown = {item.name: Path(item.path).name for item in found.items}
    codes = {shown[item.name]: None for item in found.items}
    for row in refused:
        codes[next(shown[i.name] for i in found.items if i.called(i.name) == row["source"])] = row[
            "code"
        ]
    for entry in found.rejected:
        assert entry.code in ("dicomdir", "no_pixels", "not_a_slice", "not_dicom", "unreadable")
    mr = {name: code for name, code in codes.items() if "-MR_" in name and "truncated" not in name}
    assert len(mr) >= 8
    assert set(mr.values()) == {None}
    assert [str(w.message) for w in recwarn if "pydicom" in str(w.filename)] == []


def test_labels_by_a_class_that_is_not_known(tree, load, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("patient_id,label\nx,glioma\ny,metastasis\n")
    with pytest.raises(UserError, match=r"line 3: the label 'metastasis'.*--classes"):
        load(tree, labels=str(table))
