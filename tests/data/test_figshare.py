import io

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from btray.core.images import decode
from btray.core.pseudonyms import Pseudonyms
from btray.data.dataset import SCHEMA
from btray.data.importer import quarantine
from btray.data.sources.figshare import Figshare, read_folds, read_slice
from btray.errors import UserError

# As published: a 512-byte MATLAB block before the HDF5.
USER_BLOCK = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, HDF5 schema 1.00 .".ljust(512)


def mat73(write):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512) as file:
        write(file)
    data = bytearray(buffer.getvalue())
    data[:512] = USER_BLOCK
    return bytes(data)


def cjdata(image, label=1, patient="100360", mask=None, changes=None):
    """A file of the published structure; HDF5 shows MATLAB's columns as rows."""
    mask = np.zeros(image.shape, np.uint8) if mask is None else mask
    fields = {
        "PID": np.array([[ord(c)] for c in patient], np.uint16),
        "image": image.astype(np.int16).T,
        "label": np.array([[label]], np.float64),
        "tumorBorder": np.array([[1.0, 2.0, 3.0, 4.0]]),
        "tumorMask": mask.astype(np.uint8).T,
    } | (changes or {})

    def write(file):
        group = file.create_group("cjdata")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, value in fields.items():
            if value is not None:
                group.create_dataset(name, data=value)

    return mat73(write)


def published(folder, draw, count=18):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        image = draw(number).astype(np.int16) * 20
        data = cjdata(image, label=(number - 1) % 3 + 1, patient=f"{(number - 1) // 3 * 7 + 100}")
        (folder / f"{number}.mat").write_bytes(data)
    folds = np.arange(count) // 3 % 5 + 1  # by patient, as published
    savemat(folder / "cvind.mat", {"cvind": folds.reshape(-1, 1).astype(float)})
    return folder


@pytest.fixture
def folder(tmp_path, draw):
    return published(tmp_path / "figshare", draw)


def refusal(data):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its code is looked at
        read_slice(data)
    return caught.value.code


def test_slice_lies_as_matlab_shows_it():
    image = np.arange(40 * 30, dtype=np.int16).reshape(40, 30) - 100
    mask = np.zeros((40, 30), np.uint8)
    mask[3, 17] = 1
    slice_ = read_slice(cjdata(image, 2, "MR12", mask))
    assert (slice_.image == image).all()
    assert np.argwhere(slice_.mask == 255).tolist() == [[3, 17]]
    assert (slice_.label, slice_.patient) == (2, "MR12")


def test_rows(folder, load, draw):
    dataset = load(folder)
    rows = dataset.table(SCHEMA.names).to_pylist()
    assert (dataset.manifest.source, dataset.manifest.quarantined, len(rows)) == ("figshare", 0, 18)
    by_name = {row["source"]: row for row in rows}
    assert [by_name[f"{n}.mat"]["label"] for n in (1, 2, 3)] == [
        "meningioma",
        "glioma",
        "pituitary",
    ]
    assert [by_name[f"{n}.mat"]["fold"] for n in range(1, 8)] == [0, 0, 0, 1, 1, 1, 2]
    assert {row["sequence"] for row in rows} == {"T1ce"}
    assert len({row["patient_id"] for row in rows}) == 6
    assert by_name["1.mat"]["patient_id"] == by_name["3.mat"]["patient_id"] != "100"
    pixels = draw(5).astype(float)
    expected = np.round((pixels - pixels.min()) / np.ptp(pixels) * 255)
    assert (decode(by_name["5.mat"]["image"]) == expected).all()
    mask = np.asarray(Image.open(io.BytesIO(by_name["5.mat"]["mask"])))
    assert mask.shape == (48, 48)


def test_zip_of_zips(folder, tmp_path, load):
    import zipfile

    inner = tmp_path / "brainTumorDataPublic_1-18.zip"
    with zipfile.ZipFile(inner, "w") as packed:
        for path in folder.glob("[0-9]*.mat"):
            packed.write(path, path.name)
    with zipfile.ZipFile(tmp_path / "1512427.zip", "w") as packed:
        packed.write(inner, inner.name)
        packed.write(folder / "cvind.mat", "cvind.mat")
        packed.writestr("README.txt", "x")
    dataset = load(tmp_path / "1512427.zip")
    assert dataset.manifest.rows == 18
    assert [entry.code for entry in quarantine(dataset)] == ["not_figshare"]
    assert sum(dataset.table(["fold"])["fold"].is_valid().to_pylist()) == 18


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_folds_of_every_version(version):
    folds = np.array([[1.0], [5.0], [3.0]])
    buffer = io.BytesIO()
    savemat(buffer, {"cvind": folds})
    data = (
        buffer.getvalue()
        if version == "5"
        else mat73(lambda file: file.create_dataset("cvind", data=folds.T))
    )
    assert read_folds(data).tolist() == [1, 5, 3]


@pytest.mark.parametrize("values", [[[0.0]], [[6.0]], [[1.5]], np.zeros((0, 1))])
def test_folds_that_are_none(folder, load, values):
    savemat(folder / "cvind.mat", {"cvind": np.asarray(values)})
    with pytest.raises(UserError, match=r"cvind.mat: cvind is not a list of folds from 1 to 5"):
        load(folder)


def test_a_damaged_or_short_cvind(folder, load):
    (folder / "cvind.mat").write_bytes(b"MATLAB 5.0 nonsense")
    with pytest.raises(UserError, match=r"cvind.mat: damaged"):
        load(folder)
    savemat(folder / "cvind.mat", {"cvind": np.ones((17, 1))})
    with pytest.raises(UserError, match=r"the folds of 17 files, and there is 18.mat"):
        load(folder)


def test_without_cvind_there_are_no_folds(folder, load):
    (folder / "cvind.mat").unlink()
    assert set(load(folder).table(["fold"])["fold"].to_pylist()) == {None}


def test_a_mat_of_version_5_is_quarantined(folder, load, draw):
    for number in (16, 17):
        savemat(folder / f"{number}.mat", {"cjdata": {"label": 1.0, "image": draw(1)}})
    (folder / "18.mat").write_bytes((folder / "18.mat").read_bytes()[:3000])
    found = {entry.path: entry.code for entry in quarantine(load(folder))}
    assert found == {"16.mat": "mat_v5", "17.mat": "mat_v5", "18.mat": "not_figshare"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"label": np.array([[4.0]])}, "unknown_label"),
        ({"label": np.array([[np.nan]])}, "unknown_label"),
        ({"label": np.zeros((2, 1))}, "not_figshare"),
        ({"label": None}, "not_figshare"),
        ({"PID": np.zeros((3, 1), np.uint16)}, "no_patient"),
        ({"tumorMask": np.zeros((3, 4), np.uint8)}, "mask_size"),
        ({"tumorMask": None}, "not_figshare"),
        ({"image": np.zeros((3, 4, 5), np.int16)}, "not_figshare"),
    ],
)
def test_other_structures_are_refused(changes, code):
    assert refusal(cjdata(np.zeros((40, 40)), changes=changes)) == code


def test_a_bomb_is_refused_unread():
    def write(file):
        group = file.create_group("cjdata")
        group["label"], group["PID"] = np.ones((1, 1)), np.full((1, 1), 65, np.uint16)
        group.create_dataset("image", (60_000, 60_000), np.int16, compression="gzip")
        group.create_dataset("tumorMask", (60_000, 60_000), np.uint8, compression="gzip")

    assert refusal(mat73(write)) == "too_large"


def test_its_classes_must_be_among_ones_own(folder, load):
    with pytest.raises(UserError, match=r"--classes glioma,other: .* also has meningioma, pituit"):
        load(folder, class_names=("glioma", "other"))


def test_the_key_is_not_part_of_what_identifies_the_source(folder):
    one, two = (Figshare(str(folder), Pseudonyms(key)) for key in (b"a" * 16, b"b" * 16))
    assert one.fingerprint(one.listing().items) == two.fingerprint(two.listing().items)


def test_another_key_is_another_data_set(folder, load, monkeypatch):
    monkeypatch.setenv("BTRAY_PSEUDONYM_KEY", "a" * 16)
    first = load(folder).manifest
    assert load(folder).manifest == first
    monkeypatch.setenv("BTRAY_PSEUDONYM_KEY", "b" * 16)
    with pytest.raises(UserError, match="other settings"):
        load(folder)
    monkeypatch.delenv("BTRAY_PSEUDONYM_KEY")
    with pytest.raises(UserError, match="other settings"):
        load(folder)
