import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from btray.core.metrics import (
    count_confusion,
    evaluate_probabilities,
    metrics_from_confusion,
    roc_points,
)

NAMES = ("glioma", "meningioma", "notumor", "pituitary")


def random_answers(seed, rows=300, classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@st.composite
def answers(draw):
    """Labels and probabilities, often with classes no row has or no answer names, and ties."""
    classes = draw(st.integers(2, 5))
    rows = draw(st.integers(1, 30))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    cell = st.integers(0, 3)
    row = st.lists(cell, min_size=classes, max_size=classes)
    parts = np.array(draw(st.lists(row, min_size=rows, max_size=rows)), dtype=float) + 0.5
    return np.array(labels), parts / parts.sum(axis=1, keepdims=True)


def expected_auroc(labels, probabilities, k):
    positive = labels == k
    if positive.all() or not positive.any():
        return None
    return sklearn.roc_auc_score(positive, probabilities[:, k])


@settings(max_examples=25)
@given(answers())
def test_equal_to_scikit_learn(drawn):
    labels, probabilities = drawn
    classes = probabilities.shape[1]
    scores = evaluate_probabilities(labels, probabilities, [f"c{k}" for k in range(classes)])
    predicted = probabilities.argmax(axis=1)
    close = {"abs": 1e-12, "rel": 0}
    assert scores["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted), **close)
    options = {"labels": range(classes), "zero_division": 0}
    for key, function in (
        ("precision", sklearn.precision_score),
        ("recall", sklearn.recall_score),
        ("f1", sklearn.f1_score),
    ):
        macro = function(labels, predicted, average="macro", **options)
        assert scores[f"macro_{key}"] == pytest.approx(macro, **close)
        each = function(labels, predicted, average=None, **options)
        found = [of_class[key] for of_class in scores["per_class"].values()]
        assert found == pytest.approx(each, **close)


@settings(max_examples=25)
@given(answers())
def test_auroc_is_that_of_scikit_learn_or_none(drawn):
    labels, probabilities = drawn
    classes = probabilities.shape[1]
    scores = evaluate_probabilities(labels, probabilities, [f"c{k}" for k in range(classes)])
    expected = [expected_auroc(labels, probabilities, k) for k in range(classes)]
    assert [of_class["auroc"] for of_class in scores["per_class"].values()] == expected
    if None in expected:
        assert scores["macro_auroc"] is None
    else:
        assert scores["macro_auroc"] == pytest.approx(np.mean(expected), abs=1e-12)


@settings(max_examples=25)
@given(answers())
def test_every_row_is_counted_once(drawn):
    labels, probabilities = drawn
    classes = probabilities.shape[1]
    scores = evaluate_probabilities(labels, probabilities, [f"c{k}" for k in range(classes)])
    counts = np.array(scores["confusion_matrix"]["counts"])
    predicted = probabilities.argmax(axis=1)
    assert counts.sum() == scores["rows"] == len(labels)
    assert counts.sum(axis=1).tolist() == np.bincount(labels, minlength=classes).tolist()
    assert counts.sum(axis=0).tolist() == np.bincount(predicted, minlength=classes).tolist()
    assert np.trace(counts) / len(labels) == pytest.approx(scores["accuracy"], abs=1e-12)


@settings(max_examples=25)
@given(answers())
def test_scores_are_json_without_nan(drawn):
    labels, probabilities = drawn
    names = [f"c{k}" for k in range(probabilities.shape[1])]
    everything = {
        **evaluate_probabilities(labels, probabilities, names),
        "roc": roc_points(labels, probabilities, names),
    }
    assert json.loads(json.dumps(everything, allow_nan=False)) == everything


@settings(max_examples=25)
@given(answers(), st.integers(1, 4))
def test_confusions_of_ranks_add_up_to_the_whole(drawn, ranks):
    labels, probabilities = drawn
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    shares = [slice(rank, None, ranks) for rank in range(min(ranks, len(labels)))]
    total = sum(count_confusion(labels[s], predicted[s], classes) for s in shares)
    assert (total == count_confusion(labels, predicted, classes)).all()
    whole = evaluate_probabilities(labels, probabilities, [f"c{k}" for k in range(classes)])
    assert metrics_from_confusion(total).items() <= whole.items()


def test_by_hand():
    # glioma: 3 rows, 2 right, 1 called meningioma; meningioma: 1 row, right; no notumor.
    counts = np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]])
    scores = metrics_from_confusion(counts)
    assert scores["accuracy"] == pytest.approx(3 / 4)
    assert scores["macro_precision"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert scores["macro_recall"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["macro_f1"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)


def test_all_right():
    labels = np.arange(8) % 4
    scores = evaluate_probabilities(labels, np.eye(4)[labels], NAMES)
    keys = ("accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_auroc")
    assert [scores[key] for key in keys] == [1.0] * 5
    assert scores["confusion_matrix"] == {
        "class_names": list(NAMES),
        "counts": (2 * np.eye(4, dtype=int)).tolist(),
    }


def test_all_wrong():
    labels = np.arange(8) % 4
    scores = evaluate_probabilities(labels, np.eye(4)[(labels + 1) % 4], NAMES)
    assert [scores[key] for key in ("accuracy", "macro_f1")] == [0.0, 0.0]
    # Of every class's rows none is on top and 1 in 3 of the others is: AUROC (0 + 2/3) / 2.
    assert scores["macro_auroc"] == pytest.approx(1 / 3)


def test_a_network_that_says_one_class_is_at_chance():
    labels = np.arange(8) % 4
    scores = evaluate_probabilities(labels, np.tile([0.7, 0.1, 0.1, 0.1], (8, 1)), NAMES)
    assert scores["accuracy"] == pytest.approx(0.25)
    assert scores["macro_recall"] == pytest.approx(0.25)
    assert scores["macro_precision"] == pytest.approx(0.25 / 4)
    assert scores["macro_auroc"] == pytest.approx(0.5)


def test_auroc_of_a_single_class_is_none_for_all():
    scores = evaluate_probabilities(np.zeros(3, int), np.tile([0.9, 0.1], (3, 1)), ("a", "b"))
    assert [of_class["auroc"] for of_class in scores["per_class"].values()] == [None, None]
    assert scores["macro_auroc"] is None


def test_roc_points_hold_the_area_under_them():
    labels, probabilities = random_answers(3)
    curves = roc_points(labels, probabilities, NAMES)
    scores = evaluate_probabilities(labels, probabilities, NAMES)["per_class"]
    areas = {
        name: np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"])
        for name, curve in curves.items()
    }
    assert areas == pytest.approx({name: scores[name]["auroc"] for name in NAMES}, abs=1e-12)


def test_a_class_without_rows_has_no_curve():
    labels, probabilities = random_answers(4)
    kept = labels != 2
    curves = roc_points(labels[kept], probabilities[kept], NAMES)
    assert list(curves) == ["glioma", "meningioma", "pituitary"]


def test_the_order_of_rows_does_not_matter():
    labels, probabilities = random_answers(5)
    order = np.random.default_rng(0).permutation(len(labels))
    assert evaluate_probabilities(labels, probabilities, NAMES) == evaluate_probabilities(
        labels[order], probabilities[order], NAMES
    )
