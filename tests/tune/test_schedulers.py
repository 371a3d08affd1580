"""What a sweep says of its schedule before it starts."""

import pytest

from btray.config import resolve_as
from btray.tune.schedulers import doubt
from btray.tune.settings import SweepConfig


def settings(epochs=16, batch_size=16, **tune):
    tree = {"train": {"epochs": epochs}, "data": {"batch_size": batch_size}, "tune": tune}
    return resolve_as(SweepConfig, tree)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_an_early_end_on_few_batches_is_told(scheduler):
    said = doubt(settings(scheduler=scheduler), rows=480)
    assert said.startswith("a trial may end after 30 batches")
    assert said.endswith("better tune.grace_epochs=2, or a smaller data.batch_size")


def test_a_run_too_short_for_more_grace_is_told_of_batches_only():
    assert doubt(settings(epochs=2), rows=480).endswith("better a smaller data.batch_size")


@pytest.mark.parametrize(
    ("tune", "rows"),
    [
        ({}, 1120),
        ({"grace_epochs": 2}, 480),
        ({"scheduler": "none"}, 32),
        ({"grace_epochs": 16}, 32),  # none ends early
    ],
)
def test_nothing_is_said_where_there_is_nothing_to_say(tune, rows):
    assert doubt(settings(**tune), rows) == ""
