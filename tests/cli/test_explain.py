import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from btray.cli.explain import explain
from btray.core import explain as core
from btray.core.bundle import load_bundle
from btray.core.labels import CLASS_NAMES
from btray.core.predictor import Predictor
from btray.core.reference import reference_bundle
from btray.errors import UserError

command = typer.Typer()
command.command()(explain)


def paint(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def mistake(*arguments):
    result = run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_picture_and_what_is_said_are_those_of_the_core(here, tiny_bundle):
    data = paint(Path("a.png")).read_bytes()
    result = run(tiny_bundle.uri, "a.png")
    assert result.exit_code == 0, result.output
    told = core.explain(Predictor(tiny_bundle), data)
    assert Path("a-gradcam.png").read_bytes() == core.overlay(told)
    first, *_, where, notice = result.stdout.splitlines()
    assert first == f"a.png: {told.class_name}, probability {told.probability:.4f}"
    assert where == "  picture: a-gradcam.png"
    assert "Research use only" in notice


def test_the_bundle_may_be_an_option(here, tiny_bundle):
    paint(Path("a.png"))
    one = run(tiny_bundle.uri, "a.png")
    other = run("a.png", "--bundle", tiny_bundle.uri)
    assert one.stdout == other.stdout


@pytest.mark.parametrize(
    "given", [("a.png",), ("reference", "a.png"), ("a.png", "--bundle", "reference")]
)
def test_the_shipped_bundle(here, given):
    data = paint(Path("a.png")).read_bytes()
    result = run(*given)
    assert result.exit_code == 0, result.output
    (answer,) = Predictor(load_bundle(reference_bundle())).predict([data])
    assert f"a.png: {answer.class_name}, " in result.stdout


def test_another_class_than_the_answer(here, tiny_bundle):
    data = paint(Path("a.png")).read_bytes()
    (answer,) = Predictor(tiny_bundle).predict([data])
    for name, probability in answer.probabilities.items():
        result = run("a.png", "--bundle", tiny_bundle.uri, "--class", name)
        assert f"a.png: {answer.class_name}, probability" in result.stdout
        said = f"explained: {name}, probability {probability:.4f}" in result.stdout
        assert said is (name != answer.class_name)


def test_what_is_unlike_the_training_images_is_marked(here, make_bundle):
    paint(Path("a.png"))
    calibration = make_bundle(here / "plain").card.calibration
    for threshold, strange in ((-1e6, True), (1e6, False)):
        changed = calibration.model_copy(update={"ood_threshold": threshold})
        bundle = make_bundle(here / f"bundle{strange}", calibration=changed)
        result = run(bundle.uri, "a.png")
        assert ("unlike the images it was trained on" in result.stdout) is strange


def test_several_images(here, tiny_bundle):
    for seed, name in enumerate(("in/a.png", "in/b.jpg")):
        paint(Path(name), seed)
    Path("out").mkdir()
    result = run("in", "--bundle", tiny_bundle.uri, "--out", "out")
    assert result.exit_code == 0, result.output
    written = sorted(path.name for path in Path("out").iterdir())
    assert written == ["a-gradcam.png", "b-gradcam.png"]
    assert result.stdout.count("picture: ") == 2


def test_several_images_without_a_bundle_are_all_images(here, tiny_bundle):
    paint(Path("a.png"))
    assert mistake("a.png", "gone.png").startswith("gone.png: no such file")
    assert mistake("gone.png", "a.png").startswith("gone.png: no such file")


def test_out_names_the_file(here, tiny_bundle):
    paint(Path("a.png"))
    assert run(tiny_bundle.uri, "a.png", "--out", "mine.PNG").exit_code == 0
    assert Image.open("mine.PNG").size == (32, 32)
    assert not Path("a-gradcam.png").exists()


def test_odd_names(here, tiny_bundle):
    paint(Path("[b]:x: ü.png"))
    result = run(tiny_bundle.uri, "[b]:x: ü.png")
    assert result.exit_code == 0, result.output
    assert "picture: [b]:x: ü-gradcam.png" in result.stdout


def test_an_image_that_cannot_be_used(here, tiny_bundle):
    Path("a.png").write_bytes(b"no image")
    Path("gone.png").symlink_to("nowhere.png")
    assert mistake(tiny_bundle.uri, "a.png").startswith("a.png: not an image")
    assert mistake(tiny_bundle.uri, "gone.png") == (
        "gone.png: cannot be read: No such file or directory"
    )
    assert not list(here.glob("*-gradcam.png"))


def test_an_unknown_class(here, tiny_bundle):
    paint(Path("a.png"))
    said = mistake(tiny_bundle.uri, "a.png", "--class", "tumour")
    assert all(word in said for word in ("'tumour'", *CLASS_NAMES))


def test_no_bundle_there(here):
    paint(Path("a.png"))
    Path("folder").mkdir()
    assert "folder: no bundle" in mistake("folder", "a.png")
    assert "gone: no bundle" in mistake("gone", "a.png")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("gone/x.png", "gone: no such folder"),
        ("x.jpg", "x.jpg: neither a folder nor a name in .png"),
        ("a.png", "a.png: would overwrite an image"),
        ("./in/../a.png", "in/../a.png: would overwrite an image"),
        ("x" * 300 + ".png", "cannot be written: File name too long"),
        ("x" * 300 + "/x.png", "no such folder"),
    ],
)
def test_out_that_cannot_be(here, tiny_bundle, out, said):
    before = paint(Path("a.png")).read_bytes()
    Path("in").mkdir()
    assert said in mistake(tiny_bundle.uri, "a.png", "--out", out)
    assert Path("a.png").read_bytes() == before


def test_a_place_that_cannot_be_written(here, tiny_bundle):
    paint(Path("a.png"))
    Path("full.png").symlink_to("/dev/full")
    said = mistake(tiny_bundle.uri, "a.png", "--out", "full.png")
    assert said == "full.png: cannot be written: No space left on device"


def test_several_images_do_not_go_to_one_place(here, tiny_bundle):
    paint(Path("in/a.png"))
    paint(Path("in/a.jpg"))
    several = ("in", "--bundle", tiny_bundle.uri)
    assert mistake(*several).startswith("a-gradcam.png: of several images")
    assert mistake(*several, "--out", "x.png").startswith("x.png: not a folder")


def test_the_command_needs_no_ray(here, tiny_bundle):
    paint(Path("a.png"))
    code = (
        "import sys, typer\nfrom btray.cli.explain import explain\n"
        "try: typer.run(explain)\nfinally: assert 'ray' not in sys.modules, 'Ray was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_bundle.uri, "a.png"], check=False)
    assert done.returncode == 0
