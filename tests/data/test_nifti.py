import gzip

import nibabel
import numpy as np
import pytest
from scipy.ndimage import zoom

from btray.core.images import ImageError, decode
from btray.data.dataset import SCHEMA
from btray.data.importer import quarantine
from btray.data.sources.nifti import SliceRange, read_volume
from btray.errors import UserError

RAS = np.diag([1.0, 1.0, 1.0, 1.0])


def noise(seed, shape=(40, 36, 24)):
    coarse = np.random.default_rng(seed).integers(0, 1000, [side // 4 for side in shape])
    return zoom(coarse.astype(np.float32), 4, order=1).astype(np.int16)


def save(path, volume, affine=RAS, code=1):
    image = nibabel.Nifti1Image(volume, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    nibabel.save(image, path)


@pytest.fixture
def volumes(tmp_path):
    root = tmp_path / "volumes"
    root.mkdir()
    lines = ["path,label"]
    for number in range(6):
        name = f"v{number}.nii" + (".gz" if number % 2 else "")
        save(root / name, noise(number))
        lines.append(f"{name},{('glioma', 'pituitary')[number // 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def take(volumes, load, tmp_path):
    return lambda **options: load(volumes, labels=str(tmp_path / "labels.csv"), **options)


def rows_of(dataset):
    return dataset.table(SCHEMA.names).to_pylist()


def test_slices_of_a_volume_share_a_patient(take):
    dataset = take(slices="0.25:0.75", every=4)
    rows = rows_of(dataset)
    assert dataset.manifest.source == "nifti"
    assert len(rows) == 6 * 3
    assert {row["source"].partition("#")[2] for row in rows} == {
        "axial-006",
        "axial-010",
        "axial-014",
    }
    assert len({row["patient_id"] for row in rows}) == 6
    assert {row["plane"] for row in rows} == {"axial"}
    assert "v0" not in {row["patient_id"] for row in rows}


def test_volumes_of_one_patient_stay_together(volumes, tmp_path, load):
    table = tmp_path / "labels.csv"
    lines = [
        f"{path.name},{('glioma', 'pituitary')[n // 3]},{n}"
        for n, path in enumerate(sorted(volumes.iterdir()))
    ]
    lines[1] = lines[1][:-1] + "0"
    table.write_text("\n".join(["path,label,patient_id", *lines]))
    with pytest.raises(UserError, match="class glioma has 2 groups"):
        load(volumes, labels=str(table), slices="10:14")


@pytest.mark.parametrize(
    ("axis", "corner"),
    [
        # The voxel furthest right, front and up: seen on the left, and up.
        ("axial", (0, 0)),
        ("coronal", (0, 0)),
        ("sagittal", (0, 0)),
    ],
)
@pytest.mark.parametrize("turn", ["RAS", "LPS", "PIR", "SAL"])
def test_slices_are_upright_however_the_volume_is_stored(tmp_path, load, axis, corner, turn):
    root = tmp_path / axis
    root.mkdir()
    volume = np.full((40, 36, 32), 10, np.int16)
    volume[20:, 18:, 16:] = 400  # right, front, upper eighth
    wanted = nibabel.orientations.axcodes2ornt(turn)
    stored = nibabel.Nifti1Image(volume, RAS).as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), wanted)
    )
    data = stored.to_bytes()
    pixels, _ = read_volume(data)
    assert (pixels == volume).all()
    from btray.core.pseudonyms import Pseudonyms
    from btray.data.sources.base import Item
    from btray.data.sources.nifti import NiftiTree

    (root / "v.nii").write_bytes(data)
    slices = SliceRange.parse("25:26")
    source = NiftiTree(str(root), "", Pseudonyms(b"k" * 16), axis, slices)
    (record,) = source.read(Item("v.nii", "glioma"))
    shown = decode(record.data)
    height, width = shown.shape
    bright = shown > 128
    assert bright[: height // 2, : width // 2].all()
    assert bright.sum() == (height // 2) * (width // 2)


def test_pixels_become_square(volumes, tmp_path, load):
    for path in volumes.iterdir():
        save(path, noise(int(path.name[1])), np.diag([1.0, 1.0, 3.0, 1.0]))
    rows = rows_of(load(volumes, labels=str(tmp_path / "labels.csv"), axis="coronal", every=9))
    assert {(row["height"], row["width"]) for row in rows} == {(72, 40)}


def test_unusable_volumes_are_quarantined(take, volumes, tmp_path):
    nan = noise(9).astype(np.float32)
    nan[0, 0, 0] = np.nan
    save(volumes / "a4d.nii", np.zeros((20, 20, 20, 3), np.int16))
    save(volumes / "flat.nii", np.zeros((20, 20), np.int16))
    save(volumes / "nowhere.nii", noise(7), code=0)
    save(volumes / "nan.nii", nan)
    (volumes / "cut.nii").write_bytes((volumes / "v0.nii").read_bytes()[:5000])
    whole = (volumes / "v1.nii.gz").read_bytes()
    (volumes / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (volumes / "text.nii.gz").write_bytes(gzip.compress(b"no volume"))
    (volumes / "empty.nii").write_bytes(b"")
    (volumes / "unlabelled.nii").write_bytes((volumes / "v0.nii").read_bytes())
    (volumes / "notes.txt").write_text("x")
    names = ["a4d.nii", "flat.nii", "nowhere.nii", "nan.nii", "cut.nii", "cut.nii.gz"]
    with (tmp_path / "labels.csv").open("a") as table:
        for name in (*names, "text.nii.gz", "empty.nii"):
            table.write(f"\n{name},glioma")
    dataset = take(slices="10:12")
    assert dataset.manifest.rows == 12
    assert {entry.path: entry.code for entry in quarantine(dataset)} == {
        "a4d.nii": "not_3d",
        "flat.nii": "not_3d",
        "nowhere.nii": "no_orientation",
        "nan.nii": "not_finite",
        "cut.nii": "unreadable",
        "cut.nii.gz": "unreadable",
        "text.nii.gz": "unreadable",
        "empty.nii": "unreadable",
        "unlabelled.nii": "no_label",
        "notes.txt": "not_nifti",
    }


def test_a_fourth_dimension_of_one_is_none():
    image = nibabel.Nifti1Image(noise(1)[..., None], RAS)
    assert read_volume(image.to_bytes())[0].shape == (40, 36, 24)


def test_a_volume_too_large_is_refused_unread():
    header = nibabel.Nifti1Header()
    header.set_data_shape((20_000, 20_000, 20_000))
    header.set_sform(RAS, 1)
    with pytest.raises(ImageError, match="more voxels"):
        read_volume(header.binaryblock + b"\0" * 100)


@pytest.mark.parametrize(
    ("text", "count", "numbers"),
    [
        (None, 4, [0, 1, 2, 3]),
        ("1:3", 4, [1, 2]),
        ("1:9", 4, [1, 2, 3]),
        ("0.25:0.75", 4, [1, 2]),
        ("0.0:1.0", 4, [0, 1, 2, 3]),
    ],
)
def test_slice_range(text, count, numbers):
    assert list(SliceRange.parse(text).numbers(count)) == numbers


@pytest.mark.parametrize("text", ["", "5", "a:b", "3:3", "4:2", "-1:4", "0.5:1.5", "1:2:3", "1:"])
def test_a_range_that_is_none(text):
    with pytest.raises(UserError, match="--slices"):
        SliceRange.parse(text)


def test_slices_beyond_every_volume(take):
    with pytest.raises(UserError, match=r"no usable image; the first: v0.nii: --slices leaves"):
        take(slices="100:200")


def test_labels_are_needed(volumes, load):
    with pytest.raises(UserError, match="NIfTI volumes need --labels"):
        load(volumes)


def test_the_listing_counts_slices(volumes, tmp_path):
    from btray.core.pseudonyms import Pseudonyms
    from btray.data.sources.nifti import NiftiTree

    source = NiftiTree(str(volumes), str(tmp_path / "labels.csv"), Pseudonyms(b"k" * 16), "coronal")
    assert source.listing().images == 6 * 36
