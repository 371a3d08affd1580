import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from btray.core.doubts import doubtful_labels


def test_a_label_is_doubted_where_another_class_is_as_probable_as_in_its_own_rows():
    labels = np.array([0, 0, 0, 1, 1, 1])
    first = np.array([0.9, 0.8, 0.1, 0.1, 0.3, 0.95])
    probabilities = np.stack([first, 1 - first], axis=1)
    # The mean of class 0 in its rows is 0.6, of class 1 in its own 0.55.
    rows, instead = doubtful_labels(labels, probabilities)
    assert rows.tolist() == [5, 2]
    assert instead.tolist() == [0, 1]


def test_unsure_answers_against_a_label_are_no_doubt():
    labels = np.array([0, 0, 1, 1])
    first = np.array([0.9, 0.45, 0.1, 0.1])
    rows, _ = doubtful_labels(labels, np.stack([first, 1 - first], axis=1))
    assert rows.size == 0


def test_a_class_without_rows_is_never_the_better_one():
    probabilities = np.array([[0.1, 0.0, 0.9], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    rows, instead = doubtful_labels(np.array([0, 0, 1]), probabilities)
    assert 2 not in instead
    assert rows.size == 0


@given(st.integers(0, 2**32 - 1))
def test_changed_labels_are_found(seed):
    """Of a network that is right about every row, some of each class labelled as the next."""
    rng = np.random.default_rng(seed)
    true = rng.permutation(np.repeat(np.arange(4), 50))
    probabilities = np.full((200, 4), 0.02)
    probabilities[np.arange(200), true] = 0.94
    probabilities += rng.random((200, 4)) * 0.01
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    changed = np.concatenate([rng.choice(np.flatnonzero(true == k), 3, False) for k in range(4)])
    labels = true.copy()
    labels[changed] = (labels[changed] + 1) % 4
    rows, instead = doubtful_labels(labels, probabilities)
    assert set(rows) == set(changed)
    np.testing.assert_array_equal(instead, true[rows])
