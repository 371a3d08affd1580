from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
import ray

from btray.config import ImageConfig
from btray.data.dataset import SPLITS, Dataset
from btray.data.decoding import decode_rows
from btray.data.folds import splits_of_fold
from btray.data.importer import run_import
from btray.data.resplit import SplitOptions, resplit
from btray.data.sources.imagefolder import ImageFolder
from btray.errors import UserError

FOLDS = 3


@pytest.fixture
def dataset(make_folder, local_reader, tmp_path):
    target = str(tmp_path / "dataset")
    run_import(ImageFolder(str(make_folder(12))), target, reader=local_reader)
    resplit(Dataset.open(target), None, SplitOptions(folds=FOLDS, test=0.25))
    return Dataset.open(target)


def test_every_row_outside_test_is_validation_exactly_once(dataset):
    held_out = Counter()
    for fold in range(FOLDS):
        held_out.update(
            dataset.with_fold(fold).table(["sha256"], "validation")["sha256"].to_pylist()
        )
    rows = dataset.table(["sha256", "split"]).to_pylist()
    assert held_out == Counter(row["sha256"] for row in rows if row["split"] != "test")


@pytest.mark.parametrize("fold", range(FOLDS))
def test_no_group_is_in_two_splits_of_a_fold(dataset, fold):
    seen = defaultdict(set)
    view = dataset.with_fold(fold)
    for row in view.table(["group_id", "split"]).to_pylist():
        seen[row["group_id"]].add(row["split"])
    assert all(len(splits) == 1 for splits in seen.values())
    assert {split for splits in seen.values() for split in splits} == set(SPLITS)


@pytest.mark.parametrize("fold", range(FOLDS))
def test_counts_and_rows_of_a_fold_agree_and_test_stays(dataset, fold):
    view = dataset.with_fold(fold)
    for split in SPLITS:
        assert view.count(split) == view.table(["sha256"], split).num_rows > 0
    assert view.table(["sha256"], "test").equals(dataset.table(["sha256"], "test"))
    assert view.manifest.content_hash == dataset.manifest.content_hash


def test_fold_0_is_the_stored_validation_split_and_others_have_another_order(dataset):
    assert dataset.with_fold(0).order_hash() == dataset.order_hash()
    assert len({dataset.with_fold(fold).order_hash() for fold in range(FOLDS)}) == FOLDS


def test_test_and_excluded_rows_and_those_without_a_fold_are_in_no_split_of_it():
    splits = pa.chunked_array([["train", "validation", "test", "excluded", "train", "test"]])
    folds = pa.chunked_array([[1, 0, 1, 1, None, None]], pa.int16())
    assert splits_of_fold(splits, folds, 1).to_pylist() == [
        "validation",
        "train",
        "test",
        "excluded",
        "excluded",
        "test",
    ]


@pytest.mark.parametrize("fold", [-1, FOLDS])
def test_a_fold_that_is_not_there(dataset, fold):
    with pytest.raises(UserError, match="it has folds 0 to 2"):
        dataset.with_fold(fold)


def test_a_data_set_without_folds(make_folder, local_reader, tmp_path):
    target = str(tmp_path / "plain")
    run_import(ImageFolder(str(make_folder(6))), target, reader=local_reader)
    with pytest.raises(UserError, match=r"it has none; make folds with `btray data split"):
        Dataset.open(target).with_fold(0)


@pytest.mark.cluster
@pytest.mark.parametrize("splits", [("train", "validation"), ("validation",), ("test",)])
def test_decoded_rows_are_those_of_the_fold(cluster, dataset, splits):
    view = dataset.with_fold(1)
    found = pa.concat_tables(ray.get(decode_rows(view, splits, ImageConfig(size=32))))
    wanted = view.table(["sha256", "label", "split"])
    keep = np.isin(wanted["split"].to_pylist(), splits)
    assert found.select(["sha256", "label", "split"]).to_pylist() == [
        row for row, kept in zip(wanted.to_pylist(), keep, strict=True) if kept
    ]
    assert found.column_names.count("square") == 1
