from collections import defaultdict
from pathlib import Path

import pytest

from btray.data.dataset import SCHEMA, Dataset
from btray.data.importer import ImportOptions, run_import
from btray.data.resplit import SplitOptions, resplit
from btray.data.sources.detect import SourceOptions, open_source
from btray.data.sources.imagefolder import ImageFolder
from btray.errors import UserError


@pytest.fixture
def folder(make_folder):
    root = make_folder(12)
    (root / "glioma" / "notes.txt").write_text("x")
    return root


@pytest.fixture
def dataset(folder, local_reader, tmp_path):
    target = str(tmp_path / "dataset")
    run_import(ImageFolder(str(folder)), target, reader=local_reader)
    return Dataset.open(target)


def untouched(dataset):
    names = [name for name in SCHEMA.names if name not in ("split", "fold")]
    return dataset.table(names)


def test_only_split_and_fold_change(dataset):
    before = untouched(dataset)
    listed = Path(dataset.path, "quarantine.jsonl").read_text()
    resplit(dataset, None, SplitOptions(seed=5, folds=3, test=0.25))
    after = Dataset.open(dataset.uri)
    assert untouched(after).equals(before)
    assert "notes.txt" in listed
    assert Path(dataset.path, "quarantine.jsonl").read_text() == listed
    rows = after.table(["split", "fold", "group_id"]).to_pylist()
    seen = defaultdict(set)
    for row in rows:
        seen[row["group_id"]].add((row["split"], row["fold"]))
    assert all(len(found) == 1 for found in seen.values())
    assert {row["fold"] for row in rows} == {None, 0, 1, 2}
    assert {row["split"] for row in rows if row["fold"] == 0} == {"validation"}


def test_the_assignment_is_recorded_and_repeatable(dataset, tmp_path):
    options = SplitOptions(seed=7, validation=0.2, test=0.2)
    one, two, other = (str(tmp_path / name) for name in ("one", "two", "other"))
    first, second = resplit(dataset, one, options), resplit(dataset, two, options)
    third = resplit(dataset, other, SplitOptions(seed=8, validation=0.2, test=0.2))
    assert first.split == second.split
    assert first.split.seed == 7
    assert first.content_hash == second.content_hash != third.content_hash
    assert first.split.assignment_hash != third.split.assignment_hash
    assert Dataset.open(one).manifest == first
    counted = Dataset.open(one).table(["split"])["split"].value_counts().to_pylist()
    assert {c["values"]: c["counts"] for c in counted} == {
        split: sum(counts.values()) for split, counts in first.counts.items()
    }


def test_folds_alone_change_the_assignment_hash(dataset, tmp_path):
    holdout = resplit(dataset, str(tmp_path / "a"), SplitOptions())
    folds = resplit(dataset, str(tmp_path / "b"), SplitOptions(folds=3))
    assert holdout.split.assignment_hash != folds.split.assignment_hash
    assert (holdout.split.folds, folds.split.folds) == (0, 3)


def test_an_import_does_not_take_another_split_for_its_own(dataset, folder, local_reader):
    resplit(dataset, None, SplitOptions(seed=5))
    with pytest.raises(UserError, match="other settings"):
        run_import(ImageFolder(str(folder)), dataset.uri, reader=local_reader)
    again = run_import(
        ImageFolder(str(folder)), dataset.uri, ImportOptions(overwrite=True), reader=local_reader
    )
    assert again.manifest == dataset.manifest


def test_an_official_split_is_kept_or_ignored(make_folder, local_reader, tmp_path):
    root = make_folder(8, under="Training")
    for label in (root / "Training").iterdir():
        (root / "Testing" / label.name).mkdir(parents=True)
        for path in sorted(label.iterdir())[:3]:
            path.rename(root / "Testing" / label.name / path.name)
    target = str(tmp_path / "dataset")
    run_import(ImageFolder(str(root)), target, reader=local_reader)
    dataset = Dataset.open(target)

    def tests(place):
        rows = Dataset.open(place).table(["source", "split"], "test").to_pylist()
        return {row["source"].split("/")[0] for row in rows}

    resplit(dataset, str(tmp_path / "kept"), SplitOptions(folds=2))
    resplit(dataset, str(tmp_path / "drawn"), SplitOptions(official=False, test=0.3, seed=1))
    assert tests(str(tmp_path / "kept")) == {"Testing"}
    assert tests(str(tmp_path / "drawn")) == {"Testing", "Training"}


def test_a_destination_with_a_data_set_is_refused(dataset, tmp_path):
    resplit(dataset, str(tmp_path / "other"), SplitOptions())
    with pytest.raises(UserError, match="holds a data set already"):
        resplit(dataset, str(tmp_path / "other"), SplitOptions())


def test_impossible_shares_leave_the_data_set_alone(dataset):
    with pytest.raises(UserError, match="split fractions"):
        resplit(dataset, None, SplitOptions(test=0.6, validation=0.6))
    assert Dataset.open(dataset.uri).manifest == dataset.manifest


def test_a_sources_own_folds_are_not_lost_in_place(make_folder, local_reader, tmp_path):
    root = make_folder(6)
    files = sorted(path for path in root.rglob("*.png"))
    lines = [f"{path},{path.parent.name},{number % 2}" for number, path in enumerate(files)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,fold", *lines]))
    with open_source(str(tmp_path / "m.csv"), SourceOptions()) as source:
        run_import(source, str(tmp_path / "d"), reader=local_reader)
    dataset = Dataset.open(str(tmp_path / "d"))
    assert dataset.manifest.split.official_folds
    with pytest.raises(UserError, match="own folds would be lost; give --out"):
        resplit(dataset, None, SplitOptions())
    resplit(dataset, str(tmp_path / "other"), SplitOptions(folds=3))
    assert Dataset.open(dataset.uri).manifest == dataset.manifest
    with pytest.raises(UserError, match="lies inside"):
        resplit(dataset, str(tmp_path / "d" / "inner"), SplitOptions())
