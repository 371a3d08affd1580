import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from btray.cli.data import FINDINGS, app
from btray.data.audit.audit import audit
from btray.data.audit.report import write_audit
from btray.data.dataset import SCHEMA, Dataset
from btray.data.importer import run_import
from btray.data.sources.imagefolder import ImageFolder
from btray.data.storage import Destination, staged
from btray.errors import CheckFailed, UserError

pytestmark = pytest.mark.cluster


def picture(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC)


def place(dataset, target, **columns):
    """Write a data set again with other columns, as no import would."""
    rows = dataset.table(SCHEMA.names)
    for name, values in columns.items():
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, rows.schema.field(name), pa.array(values))
    with staged(Destination.parse(str(target))) as staging:
        staging.write_rows(rows)
        staging.write_quarantine([])
        staging.write_manifest(dataset.manifest)
    return Dataset.open(str(target))


@pytest.fixture(scope="module")
def made(cluster, tmp_path_factory):
    """A data set with one image twice, and a third time under another label."""
    root = tmp_path_factory.mktemp("audit")
    for number, name in enumerate(("glioma", "meningioma", "notumor", "pituitary")):
        (root / "images" / name).mkdir(parents=True)
        for index in range(8):
            picture(number * 1000 + index).save(root / "images" / name / f"{index}.png")
    for name in ("glioma", "pituitary"):
        picture(0).save(root / "images" / name / "twin.bmp")
    run_import(ImageFolder(str(root / "images")), str(root / "dataset"))
    return Dataset.open(str(root / "dataset"))


@pytest.fixture(scope="module")
def clean(cluster, made):
    return audit(made)


def test_an_import_leaves_no_leak_but_keeps_the_conflict(clean):
    found = clean.to_json()
    names = ["glioma/0.png", "glioma/twin.bmp", "pituitary/twin.bmp"]
    assert found["exact_duplicates"] == {"groups": 1, "images": 3, "members": [names]}
    assert found["leakage"] == {"exact_groups": 0, "near_groups": 0, "patients": 0, "members": []}
    assert found["label_conflicts"] == {"groups": 1, "images": 3, "members": [names]}
    assert found["findings"]["conflict"] == 1
    assert set(found["findings"]) == set(FINDINGS)


def test_a_leak_is_found_and_shown(cluster, made, tmp_path):
    sources = made.table(["source"])["source"].to_pylist()
    splits = ["test" if name == "glioma/twin.bmp" else "train" for name in sources]
    leaky = place(made, tmp_path / "leaky", split=splits, official_split=splits)
    found = write_audit(audit(leaky), leaky, tmp_path / "out")
    members = [["glioma/0.png", "glioma/twin.bmp", "pituitary/twin.bmp"]]
    for leaks in (found["leakage"], found["official_leakage"]):
        assert (leaks["exact_groups"], leaks["near_groups"]) == (1, 1)
        assert leaks["members"] == members
    assert found == json.loads((tmp_path / "out" / "audit.json").read_text())
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "Research use only" in page
    assert "glioma/twin.bmp (glioma, test)" in page
    assert page.count("data:image/jpeg;base64,") >= 3
    assert 'src="http' not in page


def test_the_command_fails_on_what_it_is_asked_to(cluster, made, tmp_path):
    def run(*options):
        return CliRunner().invoke(app, ["audit", made.uri, "--out", str(tmp_path / "o"), *options])

    assert run("--fail-on", "leakage").exit_code == 0
    failed = run("--fail-on", "leakage,conflict")
    assert isinstance(failed.exception, CheckFailed)
    assert "found conflict (1)" in str(failed.exception)
    assert (tmp_path / "o" / "audit.html").exists()
    unknown = run("--fail-on", "leeks")
    assert isinstance(unknown.exception, UserError)
    assert "leakage" in str(unknown.exception)
