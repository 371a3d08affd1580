import pytest

from btray.config import resolve_config
from btray.errors import UserError
from btray.train.changes import Changes, compare

TREE = {"train": {"epochs": 5}, "data": {"batch_size": 32}}


def changed(tree=None, *overrides):
    return compare(resolve_config(TREE), Changes(tree or {}, overrides).apply(TREE))


def test_nothing_given_changes_nothing():
    assert changed() == []


def test_how_long_and_where_a_run_trains_may_change():
    lines = changed({"train": {"workers": "2..4"}}, "train.epochs=9", "train.max_failures=7")
    assert [line.split(";")[0] for line in sorted(lines)] == [
        "train.epochs: 5 -> 9",
        "train.max_failures: 3 -> 7",
        "train.workers: 1 -> 2..4",
    ]
    assert "schedule" in next(line for line in lines if line.startswith("train.epochs"))


def test_all_that_would_make_it_another_run_is_named():
    with pytest.raises(UserError) as error:
        changed({"train": {"epochs": 9}}, "data.batch_size=64", "seed=3")
    message = str(error.value)
    assert "data.batch_size: 32 -> 64" in message
    assert "seed: 0 -> 3" in message
    assert "epochs" not in message
