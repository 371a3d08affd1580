from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from btray.core.calibration import Calibration
from btray.core.metrics import evaluate_probabilities
from btray.core.subjects import CONFLICT, How, aggregate, by_subject, subject_labels

NAMES = ("glioma", "meningioma", "notumor", "pituitary")
HOWS = get_args(How)


def calibration(temperature=1.0):
    return Calibration(
        temperature=temperature, coverage=0.95, set_threshold=0, ood_threshold=0, rows=1
    )


def logits_of(*probabilities):
    return np.log(np.array(probabilities, dtype=np.float64))


def slices(seed, rows=60, subjects=9):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(rows, 4))
    return logits, rng.integers(0, 4, rows), [f"s{k}" for k in rng.integers(0, subjects, rows)]


@given(st.integers(0, 10**6), st.sampled_from(HOWS), st.integers(1, 40))
def test_probabilities_of_every_subject_once_and_in_order(seed, how, rows):
    logits, _, subjects = slices(seed, rows)
    ids, probabilities = aggregate(logits, subjects, how, NAMES)
    assert ids == sorted(set(subjects))
    assert probabilities.shape == (len(ids), 4)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(ids)), abs=1e-12)
    assert (probabilities >= 0).all()


@given(st.integers(0, 10**6), st.sampled_from(HOWS))
def test_the_order_of_the_slices_does_not_matter(seed, how):
    logits, _, subjects = slices(seed)
    order = np.random.default_rng(seed).permutation(len(subjects))
    ids, probabilities = aggregate(logits, subjects, how, NAMES)
    again, shuffled = aggregate(logits[order], [subjects[k] for k in order], how, NAMES)
    assert ids == again
    assert shuffled == pytest.approx(probabilities, abs=1e-12)


@pytest.mark.parametrize("how", ["mean_logit", "max"])
def test_a_subject_of_one_slice_has_its_probabilities(how):
    logits, _, _ = slices(0, rows=5)
    _, probabilities = aggregate(logits, list("abcde"), how, NAMES)
    assert probabilities == pytest.approx(softmax(logits, axis=1))


def test_mean_logit_by_hand():
    logits = np.array([[2.0, 0, 0, 0], [0, 0, 4.0, 0], [1.0, 1, 1, 1]])
    _, probabilities = aggregate(logits, ["a", "a", "b"], "mean_logit", NAMES)
    assert probabilities == pytest.approx(softmax([[1.0, 0, 2, 0], [1.0, 1, 1, 1]], axis=1))


def test_max_is_the_slice_least_likely_to_be_free_of_a_tumour():
    # The second has the larger sum over tumours, the first the largest single tumour.
    rows = ([0.60, 0.05, 0.30, 0.05], [0.45, 0.40, 0.10, 0.05], [0.05, 0.04, 0.90, 0.01])
    _, probabilities = aggregate(logits_of(*rows), ["a"] * 3, "max", NAMES)
    assert probabilities == pytest.approx(np.array(rows[1:2]))


@given(st.integers(0, 10**6))
def test_the_tumour_score_by_max_is_the_largest_of_the_slices(seed):
    logits, _, subjects = slices(seed)
    ids, probabilities = aggregate(logits, subjects, "max", NAMES)
    healthy = softmax(logits, axis=1)[:, 2]
    for subject, found in zip(ids, probabilities[:, 2], strict=True):
        own = [row for row, name in enumerate(subjects) if name == subject]
        assert found == pytest.approx(healthy[own].min())


def test_max_tells_apart_slices_that_are_all_but_certain():
    logits = np.array([[50.0, 0, 0, 0], [0, 70.0, 0, 0], [60.0, 0, 0, 0]])
    _, probabilities = aggregate(logits, ["a"] * 3, "max", NAMES)
    assert probabilities.argmax(axis=1).tolist() == [1]


def test_max_without_a_class_of_no_tumour_is_the_surest_slice():
    rows = ([0.6, 0.4], [0.1, 0.9], [0.7, 0.3])
    _, probabilities = aggregate(logits_of(*rows), ["a"] * 3, "max", ("left", "right"))
    assert probabilities == pytest.approx(np.array([[0.1, 0.9]]))


def test_the_majority_wins_against_certainty():
    rows = ([0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], [0.001, 0.001, 0.997, 0.001])
    _, votes = aggregate(logits_of(*rows), ["a"] * 3, "vote", NAMES)
    assert votes.argmax(axis=1).tolist() == [0]
    assert votes[0] == pytest.approx((np.array([2, 0, 1, 0]) + np.mean(rows, axis=0)) / 4)


def test_a_tie_goes_to_the_larger_mean_probability():
    rows = ([0.5, 0.3, 0.1, 0.1], [0.1, 0.2, 0.1, 0.6])
    _, votes = aggregate(logits_of(*rows), ["a"] * 2, "vote", NAMES)
    assert votes.argmax(axis=1).tolist() == [3]


@given(st.integers(0, 10**6))
def test_no_class_of_fewer_votes_wins(seed):
    logits, _, subjects = slices(seed)
    ids, probabilities = aggregate(logits, subjects, "vote", NAMES)
    for subject, winner in zip(ids, probabilities.argmax(axis=1), strict=True):
        own = [row for row, name in enumerate(subjects) if name == subject]
        votes = np.bincount(logits[own].argmax(axis=1), minlength=4)
        assert votes[winner] == votes.max()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 2, 2], 2),
        ([2, 0, 2], 0),
        ([3], 3),
        ([0, 1], CONFLICT),
        ([2, 0, 1], CONFLICT),
        ([1, 1], 1),
    ],
)
def test_the_label_of_a_subject(labels, expected):
    ids, found = subject_labels(np.array(labels), ["p"] * len(labels), NAMES)
    assert ids == ["p"]
    assert found.tolist() == [expected]


def test_without_a_class_of_no_tumour_any_two_labels_conflict():
    _, found = subject_labels(np.array([0, 1, 1]), ["p", "p", "q"], ("left", "right"))
    assert found.tolist() == [CONFLICT, 1]


def test_labels_and_probabilities_have_the_same_order():
    logits, labels, subjects = slices(3)
    ids, _ = subject_labels(labels, subjects, NAMES)
    assert ids == aggregate(logits, subjects, "vote", NAMES)[0]


def test_scores_are_those_of_the_subjects():
    logits, _, _ = slices(4)
    subjects = [f"s{row // 3}" for row in range(60)]
    labels = np.array([row // 3 % 4 for row in range(60)])
    about = {"patient_id": subjects, "series_id": [None] * 60}
    found = by_subject(logits.astype(np.float32), labels, about, NAMES, calibration(2.0))
    assert found["series"] is None
    assert set(found["patients"]) == {"count", "excluded", "rows_without", *HOWS}
    assert (found["patients"]["count"], found["patients"]["excluded"]) == (20, 0)
    truth = subject_labels(labels, subjects, NAMES)[1]
    for how in HOWS:
        _, probabilities = aggregate(
            logits.astype(np.float32).astype(np.float64) / 2, subjects, how, NAMES
        )
        assert found["patients"][how] == evaluate_probabilities(truth, probabilities, NAMES)


def test_series_and_patients_are_scored_apart():
    logits = logits_of(
        [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7], [0.1, 0.7, 0.1, 0.1]
    )
    labels = np.array([0, 2, 3, 3])
    about = {"patient_id": ["a", "a", "b", "b"], "series_id": ["a1", "a2", "b1", "b1"]}
    found = by_subject(logits, labels, about, NAMES, calibration())
    assert found["patients"]["count"] == 2
    assert found["series"]["count"] == 3
    assert found["series"]["mean_logit"]["rows"] == 3


def test_conflicts_and_unknown_subjects_are_left_out_and_counted():
    logits, _, _ = slices(5, rows=6)
    labels = np.array([0, 1, 3, 3, 2, 2])
    about = {"patient_id": ["p", "p", "q", "q", None, "r"], "series_id": [None] * 6}
    patients = by_subject(logits, labels, about, NAMES, calibration())["patients"]
    assert (patients["count"], patients["excluded"], patients["rows_without"]) == (2, 1, 1)
    assert patients["vote"]["rows"] == 2


def test_nobody_to_score():
    logits, _, _ = slices(6, rows=2)
    about = {"patient_id": ["p", "p"], "series_id": [None, None]}
    patients = by_subject(logits, np.array([0, 1]), about, NAMES, calibration())["patients"]
    assert (patients["count"], patients["excluded"]) == (0, 1)
    assert [patients[how] for how in HOWS] == [None] * 3
