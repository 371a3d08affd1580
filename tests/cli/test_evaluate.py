import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from btray.cli import app
from btray.core.labels import CLASS_NAMES
from btray.data.importer import run_import
from btray.data.sources.imagefolder import ImageFolder
from btray.errors import UserError


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture
def dataset(tmp_path):
    for number, name in enumerate(CLASS_NAMES):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for index in range(8):
            rng = np.random.default_rng(100 * number + index)
            pixels = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
            pixels.resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    run_import(ImageFolder(str(tmp_path / "images")), str(tmp_path / "dataset"))
    return tmp_path / "dataset"


@pytest.mark.cluster
def test_evaluate(cluster, dataset, tiny_bundle, tmp_path):
    out = tmp_path / "[b]out"
    result = run(tiny_bundle.uri, dataset, "--split", "train", "--out", out)
    assert result.exit_code == 0, result.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["split"], metrics["model"]["name"]) == ("train", "tiny")
    assert (out / "report.html").is_file()
    assert f"accuracy {metrics['accuracy']:.4f}" in result.stdout
    assert "note: not the data set the bundle was trained on" in result.stdout
    assert "Research use only" in result.stdout
    assert f"report: {out}/report.html" in result.stdout

    nothing = run(tiny_bundle.uri, dataset, "--split", "holdout")
    assert isinstance(nothing.exception, UserError)


def test_no_data_set(tiny_bundle, tmp_path):
    result = run(tiny_bundle.uri, tmp_path)
    assert isinstance(result.exception, UserError)
    assert "no btray data set" in str(result.exception)


def test_no_bundle(phantom, tmp_path):
    result = run(tmp_path, phantom)
    assert isinstance(result.exception, UserError)
    assert "no bundle" in str(result.exception)
