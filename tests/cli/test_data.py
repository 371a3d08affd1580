import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from btray.cli import data
from btray.cli.data import app
from btray.data.dataset import Dataset
from btray.errors import UserError


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def images(tmp_path):
    import numpy as np
    from PIL import Image

    for number, name in enumerate(("glioma", "no_tumor")):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for index in range(6):
            rng = np.random.default_rng(number * 100 + index)
            pixels = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
            pixels.resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    (tmp_path / "images" / "glioma" / "[bold]notes.txt").write_text("x")
    return tmp_path / "images"


@pytest.mark.cluster
def test_import_info_show(cluster, images, tmp_path):
    target, sheet = tmp_path / "dataset", tmp_path / "sheet.png"
    made = run("import", images, target)
    assert made.exit_code == 0, made.output
    assert "quarantined: 1" in made.stdout
    assert "glioma/[bold]notes.txt: not named like an image" in made.stdout
    assert str(target / "quarantine.jsonl") in made.stdout

    again = run("import", images, target)
    assert again.exit_code == 0
    assert again.stdout.strip() == f"{target}: already imported, nothing to do"

    table = run("info", target)
    assert "validation" in table.stdout
    assert "exact duplicates: 0 groups, 0 images" in table.stdout
    manifest = json.loads(run("info", target, "--json").stdout)
    assert manifest == json.loads((target / "manifest.json").read_text())
    assert manifest["class_names"] == ["glioma", "notumor"]

    shown = run("show", target, "--out", sheet, "--split", "train", "--per-class", 2)
    assert shown.exit_code == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")

    drawn = run("show", target, "--out", sheet, "--stages", "--set", "image.crop=head")
    assert drawn.exit_code == 0, drawn.output
    assert isinstance(run("show", target, "--out", sheet, "--set", "seed=1").exception, UserError)

    folded = run("split", target, "--folds", 2, "--test", 0.2, "--out", tmp_path / "folds")
    assert folded.exit_code == 0, folded.output
    assert "folds: 2" in folded.stdout
    assert Dataset.open(str(tmp_path / "folds")).manifest.split.folds == 2
    assert isinstance(run("split", target, "--folds", 9).exception, UserError)

    nowhere = run("show", target, "--out", tmp_path / "nowhere" / "sheet.png")
    assert isinstance(nowhere.exception, UserError)


@pytest.mark.cluster
def test_phantom_is_a_data_set_split_by_patient(cluster, tmp_path):
    target = tmp_path / "phantom"
    made = run("phantom", target, "--images", 120, "--seed", 3)
    assert made.exit_code == 0, made.output
    dataset = Dataset.open(str(target))
    assert dataset.manifest.rows == 120
    assert dataset.manifest.source == "phantom"
    rows = dataset.table(["patient_id", "split", "label"]).to_pylist()
    assert all(row["patient_id"] for row in rows)
    patients = {(row["patient_id"], row["split"]) for row in rows}
    assert len(patients) == len({patient for patient, _ in patients})


def test_strict_import_of_a_bad_file_is_the_users_mistake(cluster, images, tmp_path):
    failed = run("import", images, tmp_path / "dataset", "--strict")
    assert isinstance(failed.exception, UserError)
    assert "1 file cannot be used" in str(failed.exception)
    assert not (tmp_path / "dataset").exists()


def test_info_without_a_data_set(tmp_path):
    assert isinstance(run("info", tmp_path).exception, UserError)


def test_the_commands_load_neither_ray_nor_torch():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); "
        "sys.exit(len({'ray', 'torch', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, data.__file__]).returncode == 0


def test_ones_own_classes_and_an_unknown_class(images, tmp_path):
    (images / "metastasis").mkdir()
    failed = run("import", images, tmp_path / "dataset")
    assert "--classes" in str(failed.exception)
    for names in ("a", "a,,b", "a,A", "a_b,A B"):
        failed = run("import", images, tmp_path / "dataset", "--classes", names)
        assert "two or more different names" in str(failed.exception)
    failed = run("import", images, tmp_path / "dataset", "--classes", "metastasis,glioma")
    assert "no_tumor" in str(failed.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels", "x.csv"), "--labels is for dicom and nifti"),
        (("--format", "nifti"), "need --labels"),
        (("--format", "manifest"), "cannot be read"),
        (("--pseudonym-key-file", "/nowhere/key"), "/nowhere/key: the key cannot be read"),
    ],
)
def test_options_of_another_source(images, tmp_path, arguments, message):
    failed = run("import", images, tmp_path / "dataset", *arguments)
    assert isinstance(failed.exception, UserError)
    assert message in str(failed.exception)


@pytest.mark.cluster
def test_an_archive_is_imported_and_the_labels_that_match_nothing_are_told(
    cluster, images, tmp_path, make_dicom
):
    import shutil

    import numpy as np

    archive = shutil.make_archive(str(tmp_path / "slices"), "zip", images)
    made = run("import", archive, tmp_path / "one")
    assert made.exit_code == 0, made.output
    assert Dataset.open(str(tmp_path / "one")).manifest.rows == 12

    (tmp_path / "tree").mkdir()
    lines = ["patient_id,label", "nobody,glioma"]
    for number in range(6):
        coarse = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        pixels = np.kron(coarse, np.ones((6, 6), np.uint8))
        data = make_dicom(pixels, PatientID=f"MRN{number}")
        (tmp_path / "tree" / f"{number}").write_bytes(data)
        lines.append(f"MRN{number},{('glioma', 'pituitary')[number % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    made = run("import", tmp_path / "tree", tmp_path / "two", "--labels", tmp_path / "labels.csv")
    assert made.exit_code == 0, made.output
    assert "1 of 7 labels match no file" in made.stdout
    assert "MRN" not in made.output


def test_download_needs_a_handle(tmp_path):
    assert isinstance(run("download", "a/b", tmp_path / "x").exception, UserError)
