import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from btray.core.metrics import (
    EXACT,
    TOLERANCE,
    count_confusion,
    evaluate_probabilities,
    flat_scores,
    metrics_from_confusion,
    precision_recall_points,
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


def named(probabilities):
    return [f"c{k}" for k in range(probabilities.shape[1])]


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


@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label")
@settings(max_examples=25)
@given(answers())
def test_agreement_is_that_of_scikit_learn_or_none(drawn):
    labels, probabilities = drawn
    scores = evaluate_probabilities(labels, probabilities, named(probabilities))
    predicted = probabilities.argmax(axis=1)
    assert scores["balanced_accuracy"] == pytest.approx(
        sklearn.balanced_accuracy_score(labels, predicted), abs=1e-12
    )
    if len(set(labels.tolist())) == 1:
        assert (scores["mcc"], scores["kappa"]) == (None, None)
    else:
        mcc = sklearn.matthews_corrcoef(labels, predicted)
        kappa = sklearn.cohen_kappa_score(labels, predicted)
        assert (scores["mcc"], scores["kappa"]) == pytest.approx((mcc, kappa), abs=1e-12)


@settings(max_examples=25)
@given(answers())
def test_specificity_is_the_recall_of_the_rest_or_none(drawn):
    labels, probabilities = drawn
    scores = evaluate_probabilities(labels, probabilities, named(probabilities))
    predicted = probabilities.argmax(axis=1)
    expected = [
        None
        if (labels == k).all()
        else sklearn.recall_score(labels == k, predicted == k, pos_label=0)
        for k in range(probabilities.shape[1])
    ]
    found = [of_class["specificity"] for of_class in scores["per_class"].values()]
    assert found == pytest.approx(expected, abs=1e-12)
    macro = None if None in expected else pytest.approx(np.mean(expected), abs=1e-12)
    assert scores["macro_specificity"] == macro


@settings(max_examples=25)
@given(answers())
def test_average_precision_is_that_of_scikit_learn_or_none(drawn):
    labels, probabilities = drawn
    scores = evaluate_probabilities(labels, probabilities, named(probabilities))
    expected = [
        sklearn.average_precision_score(labels == k, probabilities[:, k])
        if (labels == k).any()
        else None
        for k in range(probabilities.shape[1])
    ]
    found = [of_class["average_precision"] for of_class in scores["per_class"].values()]
    assert found == pytest.approx(expected, abs=1e-12)
    macro = None if None in expected else pytest.approx(np.mean(expected), abs=1e-12)
    assert scores["macro_average_precision"] == macro


@settings(max_examples=25)
@given(answers(), st.data())
def test_uneven_shards_in_any_order_score_as_the_whole(drawn, data):
    labels, probabilities = drawn
    names = named(probabilities)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(labels)), max_size=4)))
    shards = data.draw(st.permutations(np.split(np.arange(len(labels)), cuts)))
    order = np.concatenate(shards)
    whole = evaluate_probabilities(labels, probabilities, names)
    merged = evaluate_probabilities(labels[order], probabilities[order], names)
    assert flat_scores(merged) == pytest.approx(flat_scores(whole), abs=1e-12)
    assert merged["confusion_matrix"] == whole["confusion_matrix"]


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
        "precision_recall": precision_recall_points(labels, probabilities, names),
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
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["macro_specificity"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    # Expected agreement of (3, 1, 0) rows and (2, 2, 0) answers by chance: 8 / 16.
    assert scores["kappa"] == pytest.approx((3 / 4 - 1 / 2) / (1 - 1 / 2))
    assert scores["mcc"] == pytest.approx((3 * 4 - 8) / np.sqrt((16 - 10) * (16 - 8)))


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


def test_rows_of_one_class_leave_undefined_what_tells_classes_apart():
    scores = evaluate_probabilities(np.zeros(3, int), np.tile([0.9, 0.1], (3, 1)), ("a", "b"))
    assert scores["accuracy"] == scores["balanced_accuracy"] == 1
    undefined = {path for path, value in flat_scores(scores).items() if value is None}
    assert undefined == {
        "macro_specificity",
        "mcc",
        "kappa",
        "macro_auroc",
        "macro_average_precision",
        "per_class.a.specificity",
        "per_class.a.auroc",
        "per_class.b.auroc",
        "per_class.b.average_precision",
    }


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        evaluate_probabilities(np.zeros(0, int), np.zeros((0, 4)), NAMES)
    with pytest.raises(ValueError, match="no rows"):
        metrics_from_confusion(np.zeros((4, 4), int))


def test_flat_scores_leave_out_counts():
    scores = evaluate_probabilities(*random_answers(6), NAMES)
    flat = flat_scores(scores)
    assert flat["mcc"] == scores["mcc"]
    assert flat["per_class.glioma.f1"] == scores["per_class"]["glioma"]["f1"]
    assert not [path for path in flat if "rows" in path or "support" in path]
    assert all(isinstance(value, float) for value in flat.values())


def test_precision_recall_points_hold_the_average_precision():
    labels, probabilities = random_answers(3)
    curves = precision_recall_points(labels, probabilities, NAMES)
    scores = evaluate_probabilities(labels, probabilities, NAMES)["per_class"]
    areas = {
        name: -np.sum(np.diff(curve["recall"]) * np.array(curve["precision"])[:-1])
        for name, curve in curves.items()
    }
    wanted = {name: scores[name]["average_precision"] for name in NAMES}
    assert areas == pytest.approx(wanted, abs=1e-12)


def test_a_class_without_rows_has_no_precision_recall_curve():
    labels, probabilities = random_answers(4)
    kept = labels != 2
    curves = precision_recall_points(labels[kept], probabilities[kept], NAMES)
    assert list(curves) == ["glioma", "meningioma", "pituitary"]


@pytest.mark.parametrize(
    ("points", "across", "up"),
    [
        (roc_points, "false_positive_rate", "true_positive_rate"),
        (precision_recall_points, "recall", "precision"),
    ],
)
def test_long_curves_are_thinned_without_a_change_of_shape(points, across, up):
    labels, probabilities = random_answers(7, rows=12_000)
    curve = points(labels, probabilities, NAMES)["glioma"]
    if points is roc_points:
        x, y, _ = sklearn.roc_curve(labels == 0, probabilities[:, 0])
    else:
        y, x, _ = sklearn.precision_recall_curve(labels == 0, probabilities[:, 0])
    assert len(x) > EXACT
    assert len(curve[across]) == len(curve[up]) < 500
    thin = np.column_stack([curve[across], curve[up]])
    whole = np.column_stack([x, y])
    assert farthest(whole, thin) <= TOLERANCE + 1e-12
    assert farthest(thin, whole) <= 1e-12


def farthest(points, line):
    """The largest distance of points to a line of straight pieces."""
    start, step = line[:-1], np.diff(line, axis=0)
    length = np.maximum((step**2).sum(axis=1), 1e-300)
    largest = 0.0
    for point in points:
        along = np.clip(((point - start) * step).sum(axis=1) / length, 0, 1)
        gap = point - start - along[:, None] * step
        largest = max(largest, np.sqrt((gap**2).sum(axis=1)).min())
    return largest


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
