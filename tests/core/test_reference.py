import shutil
from pathlib import Path

import pytest

from btray.core import reference
from btray.core.bundle import load_bundle
from btray.core.labels import CLASS_NAMES
from btray.core.reference import reference_bundle
from btray.errors import UserError


def test_the_shipped_bundle_is_found(monkeypatch, tiny_bundle, tmp_path):
    monkeypatch.setattr(reference.resources, "files", lambda package: tmp_path)
    shutil.copytree(tiny_bundle.uri, tmp_path / "models" / "reference")
    assert load_bundle(reference_bundle()).version == tiny_bundle.version


def test_an_installation_without_one(monkeypatch, tmp_path):
    monkeypatch.setattr(reference.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"no reference bundle in this installation; give --bundle"):
        reference_bundle()


def test_what_is_shipped_is_small_and_says_what_it_is():
    folder = Path(reference_bundle())
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8_000_000
    card = Path(__file__).parents[2] / "docs" / "model_card.md"
    assert (folder / "README.md").read_text() == card.read_text()
    bundle = load_bundle(str(folder))
    assert bundle.version in card.read_text()
    assert bundle.card.class_names == CLASS_NAMES
