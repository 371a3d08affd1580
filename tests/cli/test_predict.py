import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from btray.cli import app
from btray.cli.predict import answer, find_images
from btray.core.bundle import load_bundle
from btray.core.engine import has_cuda
from btray.core.images import MAX_BYTES
from btray.core.onnx_export import export_onnx
from btray.core.predictor import Predictor
from btray.core.reference import reference_bundle
from btray.errors import UserError

KEYS = [
    "path",
    "class",
    "probabilities",
    "prediction_set",
    "abstain",
    "out_of_distribution",
    "ood_score",
    "model",
]


def paint(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def json_lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def folder(tmp_path):
    """b.png, a.JPG, deep/c.tiff, and what is no image by its name."""
    for seed, name in enumerate(("b.png", "a.JPG", "deep/c.tiff")):
        paint(tmp_path / "in" / name, seed)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "empty.png").mkdir()
    return tmp_path / "in"


def names(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]


def test_a_folder_is_searched_for_images(folder):
    assert names(find_images([str(folder)]), folder) == ["a.JPG", "b.png", "deep/c.tiff"]


def test_files_come_in_the_order_given(folder):
    given = [str(folder / name) for name in ("deep/c.tiff", "a.JPG")]
    assert [str(path) for path in find_images(given)] == given


def test_a_named_file_need_not_be_named_like_an_image(folder):
    assert find_images([str(folder / "notes.txt")]) == [folder / "notes.txt"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", ["b.png"]),
        ("?.*", ["a.JPG", "b.png"]),
        ("**/*.tiff", ["deep/c.tiff"]),
        ("d*", ["deep/c.tiff"]),
    ],
)
def test_globs(folder, pattern, found):
    (folder / "empty.png").rmdir()
    assert names(find_images([str(folder / pattern)]), folder) == found


def test_a_file_named_like_a_glob_is_that_file(folder):
    odd, other = paint(folder / "[ab].png"), folder / "b.png"
    assert find_images([str(odd)]) == [odd]
    assert other not in find_images([str(odd)])


def test_what_is_named_twice_is_answered_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    given = ["b.png", "./b.png", str(folder / "b.png"), "*.png", str(folder)]
    (folder / "empty.png").rmdir()
    found = find_images(given)
    assert [path.name for path in found] == ["b.png", "a.JPG", "c.tiff"]
    assert found[0] == Path("b.png")


def test_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert find_images(["~/b.png", "~/a.*"]) == [folder / "b.png", folder / "a.JPG"]


@pytest.mark.parametrize("argument", ["missing.png", "*.bmp", "~no-such-user/a.png", "a" * 300])
def test_what_is_not_there_is_the_users_mistake(folder, monkeypatch, argument):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="no such file or folder") as caught:
        find_images(["b.png", argument])
    assert str(caught.value).startswith(f"{argument}: ")


def test_a_folder_without_images_is_the_users_mistake(folder):
    with pytest.raises(UserError, match="no image in it"):
        find_images([str(folder / "b.png"), str(folder / "empty.png")])


def test_rows_are_json_lines(folder, tiny_bundle):
    result = run("--bundle", tiny_bundle.uri, "--format", "jsonl", folder)
    assert result.exit_code == 0, result.output
    rows = json_lines(result)
    assert [list(row) for row in rows] == [KEYS] * 3
    assert [row["path"] for row in rows] == [
        str(folder / name) for name in ("a.JPG", "b.png", "deep/c.tiff")
    ]
    assert rows[0]["model"] == {"name": "tiny", "version": tiny_bundle.version}


def test_rows_are_the_answers_of_the_predictor(folder, tiny_bundle):
    rows = json_lines(run("--bundle", tiny_bundle.uri, "--format", "jsonl", folder))
    for row in rows:
        alone = Predictor(tiny_bundle).predict([Path(row["path"]).read_bytes()])[0]
        assert row["class"] == alone.class_name
        assert row["probabilities"] == pytest.approx(alone.probabilities, abs=1e-4)
        assert row["ood_score"] == pytest.approx(alone.ood_score, rel=1e-3)


def test_a_bad_image_is_a_row_and_exit_code_1_after_all_rows(folder, tiny_bundle):
    broken = folder / "aa.png"
    broken.write_bytes(b"no image")
    result = run("--bundle", tiny_bundle.uri, "--format", "jsonl", folder)
    assert result.exit_code == 1
    rows = json_lines(result)
    assert [Path(row["path"]).name for row in rows] == ["a.JPG", "aa.png", "b.png", "c.tiff"]
    assert list(rows[1]) == ["path", "error"]
    assert rows[1]["error"]["code"] == "not_an_image"
    assert [list(row) for row in rows[:1] + rows[2:]] == [KEYS] * 3


def test_a_file_that_cannot_be_read_is_a_row(tiny_bundle, tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    result = run("--bundle", tiny_bundle.uri, "--format", "jsonl", tmp_path / "gone.png")
    assert result.exit_code == 1
    (row,) = json_lines(result)
    assert row["error"] == {
        "code": "unreadable",
        "message": "cannot be read: No such file or directory",
    }


def test_a_device_is_not_read(tiny_bundle):
    (row,) = answer(Predictor(tiny_bundle), [Path("/dev/zero")])
    assert row["error"]["code"] == "not_a_file"


def test_a_huge_file_is_refused_before_it_is_read(tiny_bundle, tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no space
    (row,) = answer(Predictor(tiny_bundle), [tmp_path / "huge.png"])
    assert row["error"]["code"] == "too_large"


def test_more_images_than_a_batch_keep_their_order(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["btray.cli.predict"], "BATCH", 2)
    files = [paint(tmp_path / f"{number}.png", number) for number in range(5)]
    files[3].write_bytes(b"")
    rows = list(answer(Predictor(tiny_bundle), files))
    assert [row["path"] for row in rows] == [str(path) for path in files]
    assert ["error" in row for row in rows] == [False, False, False, True, False]


@pytest.mark.parametrize("name", ["Größe 腫瘍 1.png", "[bold]a:smile:.png", "new\nline.png"])
def test_odd_names_come_back_as_they_are(tiny_bundle, tmp_path, name):
    path = paint(tmp_path / "with space" / name)
    (row,) = json_lines(run("--bundle", tiny_bundle.uri, "--format", "jsonl", path))
    assert row["path"] == str(path)


def test_the_table_shows_names_as_they_are(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paint(Path("[b]:x: ü.png"))
    result = run("--bundle", tiny_bundle.uri, "[b]:x: ü.png")
    assert result.exit_code == 0, result.output
    assert "[b]:x: ü.png" in result.stdout
    assert "Research use only" in result.stdout


def test_the_table_tells_why_an_image_cannot_be_used(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    result = run("--bundle", tiny_bundle.uri, "a.png")
    assert result.exit_code == 1
    assert "the file is empty" in result.stdout


def test_a_missing_bundle_is_the_users_mistake(folder):
    none = run("--bundle", folder, folder).exception
    assert isinstance(none, UserError)
    assert "no bundle" in str(none)


def test_an_unknown_format_is_a_mistake_of_usage(folder, tiny_bundle):
    assert run("--bundle", tiny_bundle.uri, "--format", "xml", folder).exit_code == 2


def test_an_onnx_bundle_answers_as_the_bundle_it_was_made_of(folder, tiny_bundle, tmp_path):
    export_onnx(tiny_bundle, tmp_path / "onnx")
    made, source = (
        json_lines(run("--bundle", uri, "--format", "jsonl", folder))
        for uri in (tmp_path / "onnx", tiny_bundle.uri)
    )
    assert made == source


@pytest.mark.skipif(has_cuda(), reason="a GPU takes torch")
def test_the_command_needs_neither_ray_nor_torch_and_prints_any_name(tiny_bundle, tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    paint(tmp_path / "a.png").rename(os.fsdecode(odd))
    run(
        "--bundle", tiny_bundle.uri, tmp_path / os.fsdecode(odd)
    )  # the first time a bundle is exported, with torch
    code = (
        "import sys\nfrom btray.cli import main\n"
        "try: main()\nfinally: assert not {'ray', 'torch'} & set(sys.modules), 'Ray or torch'"
    )
    arguments = ["predict", "--bundle", tiny_bundle.uri, "--format", "jsonl", odd]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.fsencode(json.loads(done.stdout)["path"]) == odd


def test_an_exit_is_typers_own(folder, tiny_bundle):
    (folder / "b.png").write_bytes(b"")
    command = typer.main.get_command(app)
    arguments = ["predict", "--bundle", tiny_bundle.uri, "--format", "jsonl", str(folder)]
    assert command.main(arguments, standalone_mode=False) == 1


def test_without_a_bundle_the_shipped_one_answers(folder):
    result = run(folder / "b.png", "--format", "jsonl")
    (row,) = json_lines(result)
    assert result.exit_code == 0
    assert list(row) == KEYS
    assert row["model"]["version"] == load_bundle(reference_bundle()).version
