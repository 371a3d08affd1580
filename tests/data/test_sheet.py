import io

import pytest
from PIL import Image

from btray.config import AugmentConfig, Config, ImageConfig
from btray.data.dataset import Dataset
from btray.data.importer import run_import
from btray.data.sheet import choose, contact_sheet, stage_sheet
from btray.data.sources.imagefolder import ImageFolder
from btray.errors import UserError


@pytest.fixture
def dataset(make_folder, local_reader, tmp_path):
    target = str(tmp_path / "dataset")
    run_import(ImageFolder(str(make_folder(6))), target, reader=local_reader)
    return Dataset.open(target)


def test_a_sheet_is_a_picture_and_the_same_every_time(dataset):
    sheet = contact_sheet(dataset, per_class=3, seed=1)
    assert Image.open(io.BytesIO(sheet)).format == "PNG"
    assert contact_sheet(dataset, per_class=3, seed=1) == sheet
    assert contact_sheet(dataset, per_class=3, seed=2) != sheet


def test_choice_is_of_one_split_and_of_every_class(dataset):
    rows = dataset.table(["label", "split", "source"])
    picked = choose(rows, dataset.manifest.class_names, "train", 2, 0).to_pylist()
    assert [row["label"] for row in picked] == [
        name for name in dataset.manifest.class_names for _ in range(2)
    ]
    assert {row["split"] for row in picked} == {"train"}
    assert len({row["source"] for row in picked}) == 8


def test_fewer_rows_than_asked_for_are_all_shown(dataset):
    rows = dataset.table(["label", "split", "source"])
    assert choose(rows, dataset.manifest.class_names, "test", 20, 0).num_rows == 4


def test_unknown_split_is_the_users_mistake(dataset):
    with pytest.raises(UserError, match="no rows in split 'dev'; it has test, train, validation"):
        contact_sheet(dataset, split="dev")


@pytest.mark.parametrize("number", [0, 51])
def test_impossible_number_of_slices(dataset, number):
    with pytest.raises(UserError, match="--per-class"):
        contact_sheet(dataset, per_class=number)


def test_a_stage_sheet_has_a_column_for_every_stage(dataset):
    plain = Config(image=ImageConfig(size=32), augment=AugmentConfig(enabled=False))
    staged = Config(image=ImageConfig(size=32, crop="head", clip_percentiles=(1, 99), clahe=0.01))
    narrow, wide = (
        Image.open(io.BytesIO(stage_sheet(dataset, config, per_class=1)))
        for config in (plain, staged)
    )
    assert (wide.width - narrow.width) / narrow.width == pytest.approx(3 / 6, abs=0.02)
    assert wide.height == narrow.height


def test_a_stage_sheet_is_the_same_every_time(dataset):
    config = Config(image=ImageConfig(size=32))
    assert stage_sheet(dataset, config, seed=3) == stage_sheet(dataset, config, seed=3)
