import numpy as np
import pytest

from btray.data.sources.detect import SourceOptions, detect, open_source
from btray.errors import UserError


def kind(root, **files):
    root.mkdir(exist_ok=True)
    for name, data in files.items():
        path = root / name.replace("__", ".")
        path.write_bytes(data)
    return detect(str(root))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a__png", "imagefolder"),
        ("a__JPG", "imagefolder"),
        ("1__mat", "figshare"),
        ("a__nii", "nifti"),
        ("a__nii__gz", "nifti"),
        ("a__dcm", "dicom"),
        ("a__IMA", "dicom"),
    ],
)
def test_kind_by_name(tmp_path, name, found):
    assert kind(tmp_path, **{name: b"x", "notes__txt": b"x"}) == found


def test_dicom_by_its_first_bytes(tmp_path, make_dicom):
    data = make_dicom(np.ones((32, 32), np.uint16))
    assert kind(tmp_path, IM0001=data, README=b"x") == "dicom"


def test_tables(tmp_path):
    assert detect(str(tmp_path / "a.csv")) == "manifest"
    assert detect("s3://bucket/a.parquet?region=x") == "manifest"


def test_several_kinds(tmp_path):
    with pytest.raises(UserError, match=r"several kinds \(dicom, imagefolder\); say which with -"):
        kind(tmp_path, a__png=b"x", a__dcm=b"x")


def test_nothing_known_is_told_as_for_images(tmp_path, load):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        load(tmp_path / "images")
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "file.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="not a folder"):
        load(tmp_path / "file.bin")


def test_a_forced_format_settles_it(make_folder, load):
    root = make_folder(6)
    (root / "glioma" / "a.nii").write_bytes(b"x")
    assert load(root, format="imagefolder").manifest.quarantined == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "x.csv"}, "--labels is for dicom and nifti sources; this one is imagefolder"),
        ({"modality": "any"}, "--modality is for dicom"),
        ({"axis": "coronal"}, "--axis is for nifti"),
        ({"slices": "1:2"}, "--slices is for nifti"),
        ({"every": 2}, "--every is for nifti"),
        ({"pseudonym_key_file": "/nowhere"}, "/nowhere: the key cannot be read"),
    ],
)
def test_options_of_another_kind(make_folder, options, message):
    with (
        pytest.raises(UserError, match=message),
        open_source(str(make_folder(1)), SourceOptions(**options)),
    ):
        pass


def test_ones_own_classes_for_folders(make_folder, load):
    root = make_folder(6, classes=("low grade", "high_grade"))
    names = ("Low Grade", "High Grade")
    assert load(root, class_names=names).manifest.class_names == names
