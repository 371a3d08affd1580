import pickle
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from btray.data.importer import run_import
from btray.data.sources.base import Item
from btray.data.sources.phantom_source import PhantomSource
from btray.errors import UserError

LABELS = ("glioma", "meningioma", "notumor", "pituitary")


@dataclass
class Slice:
    image: np.ndarray
    label: str
    patient_id: str
    plane: str = "axial"
    sequence: str = "T1"


@pytest.fixture
def phantom(monkeypatch, draw, encoded):
    """The phantom's interface, with pictures that cost nothing."""
    fake = types.ModuleType("btray.data.sources.phantom")
    fake.phantom_plan = lambda images: [(number, 4) for number in range(images // 4)]
    fake.phantom_patient = lambda index, seed, slices: [
        Slice(draw([seed, index, n]), LABELS[index % 4], f"p{index}") for n in range(slices)
    ]
    fake.encode_png = encoded
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


def test_a_patient_is_an_item(phantom):
    found = PhantomSource(64).listing()
    assert found.images == 64
    assert len(found.items) == 16
    assert found.items[3] == Item("patient-0000003", number=3, images=4)


def test_reading_a_patient_gives_its_slices(phantom, draw, encoded):
    source = pickle.loads(pickle.dumps(PhantomSource(64, seed=5)))
    records = list(source.read(source.listing().items[1]))
    assert [record.name for record in records] == [
        f"patient-0000001/slice-00{n}.png" for n in range(4)
    ]
    assert records[2].data == encoded(draw([5, 1, 2]))
    assert {(r.label, r.patient_id, r.plane, r.sequence) for r in records} == {
        ("meningioma", "p1", "axial", "T1")
    }


def test_no_patient_crosses_splits(phantom, tmp_path, local_reader):
    source = PhantomSource(96)
    manifest = run_import(source, str(tmp_path / "dataset"), reader=local_reader).manifest
    assert manifest.rows == 96
    assert set(manifest.counts) == {"train", "validation", "test"}
    assert all(count % 4 == 0 for by in manifest.counts.values() for count in by.values())


def test_size_and_seed_change_the_fingerprint(phantom):
    sources = (PhantomSource(64), PhantomSource(64, 1), PhantomSource(68))
    prints = [source.fingerprint(source.listing().items) for source in sources]
    assert len(set(prints)) == 3


def test_too_few_images(phantom):
    with pytest.raises(UserError, match="needs at least 64"):
        PhantomSource(10).listing()
