from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from btray.core.bootstrap import drawn_groups, mcnemar, paired_bootstrap


def answers(labels, wrong, seed):
    """The labels with some of them replaced by the next class."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), wrong, replace=False)
    said = labels.copy()
    said[rows] = (said[rows] + 1) % 4
    return said


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 4, 400)


def test_the_difference_is_that_of_scikit_learn(labels):
    first, second = answers(labels, 40, 1), answers(labels, 20, 2)
    found = paired_bootstrap(labels, first, second, 4)
    accuracy = accuracy_score(labels, second) - accuracy_score(labels, first)
    macro = f1_score(labels, second, average="macro") - f1_score(labels, first, average="macro")
    assert found["accuracy"].value == pytest.approx(accuracy, abs=1e-12)
    assert found["macro_f1"].value == pytest.approx(macro, abs=1e-12)


def test_the_interval_is_the_one_known_for_a_mean_of_differences(labels):
    first, second = answers(labels, 40, 1), answers(labels, 20, 2)
    change = (second == labels).astype(float) - (first == labels)
    half = 1.959964 * change.std() / np.sqrt(len(labels))
    found = paired_bootstrap(labels, first, second, 4, resamples=4000)["accuracy"]
    assert found.low == pytest.approx(change.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(change.mean() + half, abs=0.1 * half)


def test_the_resamples_are_scored_as_scikit_learn_scores_them(labels):
    labels = labels[:30]
    first, second = answers(labels, 9, 1), answers(labels, 3, 2)
    weights = np.random.default_rng(5).multinomial(30, np.full(30, 1 / 30), size=50)
    scored = [
        [
            f1_score(
                labels,
                said,
                labels=range(4),
                average="macro",
                sample_weight=row,
                zero_division=0,
            )
            for said in (first, second)
        ]
        for row in weights
    ]
    low, high = np.quantile(np.diff(scored), (0.025, 0.975))
    found = paired_bootstrap(labels, first, second, 4, resamples=50, seed=5)["macro_f1"]
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_copies_in_groups_say_no_more_than_one_of_each(labels):
    first, second = answers(labels, 40, 1), answers(labels, 20, 2)
    single = paired_bootstrap(labels, first, second, 4)
    thrice = [np.repeat(values, 3) for values in (labels, first, second, np.arange(len(labels)))]
    grouped = paired_bootstrap(*thrice[:3], 4, groups=thrice[3])
    blind = paired_bootstrap(*thrice[:3], 4)["accuracy"]
    for name, difference in single.items():
        assert vars(grouped[name]) == pytest.approx(vars(difference), abs=1e-12)
    assert blind.high - blind.low < 0.7 * (single["accuracy"].high - single["accuracy"].low)


def test_the_same_answers_differ_in_nothing(labels):
    found = paired_bootstrap(labels, labels, labels, 4)
    assert {tuple(vars(difference).values()) for difference in found.values()} == {(0, 0, 0)}


@pytest.mark.parametrize("groups", [np.zeros(400, dtype=int), np.arange(3)])
def test_what_cannot_be_resampled_is_refused(labels, groups):
    with pytest.raises(ValueError, match=r"groups"):
        paired_bootstrap(labels, labels, labels, 4, groups=groups)


def test_every_draw_is_of_as_many_groups_as_there_are_whatever_the_portion():
    drawn = np.concatenate(list(drawn_groups(7, 50, 3, portion=50)))
    assert drawn.shape == (50, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert len(np.unique(drawn, axis=0)) > 40
    assert (np.concatenate(list(drawn_groups(7, 50, 3, portion=8))) == drawn).all()


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5), st.integers(0, 5))
def test_mcnemar_is_the_binomial_test_of_the_discordant_rows(one, two, both, neither):
    right = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], [one, two, both, neither], axis=0)
    labels = np.arange(len(right)) % 4
    first, second = ((labels + 1 - column) % 4 for column in right.T)
    found = mcnemar(labels, first, second)
    total = one + two
    tail = sum(comb(total, k) for k in range(min(one, two) + 1)) / 2**total
    assert (found.first_only, found.second_only) == (one, two)
    assert found.p_value == pytest.approx(min(1, 2 * tail), abs=1e-12)


def test_two_different_wrong_answers_are_not_discordant():
    found = mcnemar(np.zeros(3, int), np.array([1, 2, 0]), np.array([2, 1, 0]))
    assert (found.first_only, found.second_only, found.p_value) == (0, 0, 1)


def test_mcnemar_finds_a_difference_and_does_not_mind_the_order(labels):
    first, second = answers(labels, 60, 1), answers(labels, 10, 2)
    found, turned = mcnemar(labels, first, second), mcnemar(labels, second, first)
    assert found.second_only > found.first_only
    assert found.p_value == turned.p_value < 1e-6
    assert (found.first_only, found.second_only) == (turned.second_only, turned.first_only)


def test_mcnemar_refuses_rows_that_do_not_match(labels):
    with pytest.raises(ValueError, match="one value a row"):
        mcnemar(labels, labels, labels[:-1])
