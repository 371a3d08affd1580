import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn import metrics as sklearn

from btray.core import intervals
from btray.core.bootstrap import drawn_groups
from btray.core.intervals import (
    GRID,
    curve_bands,
    ratio_intervals,
    resampled_scores,
    score_intervals,
)
from btray.core.metrics import evaluate_probabilities, flat_scores

NAMES = ("glioma", "meningioma", "notumor", "pituitary")


def random_answers(seed, rows=200, sureness=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, rows)
    logits = rng.normal(size=(rows, 4)) + sureness * np.eye(4)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@st.composite
def resampled(draw):
    """Labels, probabilities with ties and absent classes, and weights of a few resamples."""
    classes, rows = draw(st.integers(2, 4)), draw(st.integers(1, 15))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    row = st.lists(st.integers(0, 3), min_size=classes, max_size=classes)
    parts = np.array(draw(st.lists(row, min_size=rows, max_size=rows)), dtype=float) + 0.5
    weight = st.lists(st.integers(0, 3), min_size=rows, max_size=rows).filter(any)
    weights = np.array(draw(st.lists(weight, min_size=1, max_size=3)), dtype=float)
    return np.array(labels), parts / parts.sum(axis=1, keepdims=True), weights


def named(probabilities):
    return [f"c{k}" for k in range(probabilities.shape[1])]


def expected_scores(labels, probabilities, weights):
    """The scores of the rows repeated, undefined where the draw alone makes a ratio 0/0."""
    names, predicted = named(probabilities), probabilities.argmax(axis=1)
    rows = np.repeat(np.arange(len(labels)), weights.astype(int))
    expected = flat_scores(evaluate_probabilities(labels[rows], probabilities[rows], names))
    for k, name in enumerate(names):
        if (labels == k).any() and not (labels[rows] == k).any():
            lost = ("recall", "f1")
            expected["balanced_accuracy"] = None
        else:
            lost = ()
        if (predicted == k).any() and not (predicted[rows] == k).any():
            lost = (*lost, "precision")
        for key in lost:
            expected[f"per_class.{name}.{key}"] = expected[f"macro_{key}"] = None
    return {path: np.nan if value is None else value for path, value in expected.items()}


@settings(max_examples=30)
@given(resampled())
def test_a_resample_scores_as_its_rows_do(drawn):
    labels, probabilities, weights = drawn
    found = resampled_scores(labels, probabilities, named(probabilities), weights)
    for position, row in enumerate(weights):
        expected = expected_scores(labels, probabilities, row)
        assert {path: float(values[position]) for path, values in found.items()} == pytest.approx(
            expected, abs=1e-9, rel=0, nan_ok=True
        )


@settings(max_examples=20)
@given(resampled())
def test_areas_are_those_of_scikit_learn_with_sample_weights(drawn):
    labels, probabilities, weights = drawn
    found = resampled_scores(labels, probabilities, named(probabilities), weights)
    for position, row in enumerate(weights):
        for k, name in enumerate(named(probabilities)):
            positive = labels == k
            if not (row @ positive and row @ ~positive):
                continue
            for key, function in (
                ("auroc", sklearn.roc_auc_score),
                ("average_precision", sklearn.average_precision_score),
            ):
                wanted = function(positive, probabilities[:, k], sample_weight=row)
                value = found[f"per_class.{name}.{key}"][position]
                assert value == pytest.approx(wanted, abs=1e-9, rel=0)


def test_the_interval_is_of_the_percentiles_over_whole_groups():
    labels, probabilities = random_answers(0, rows=60)
    groups = np.random.default_rng(1).integers(0, 15, 60)
    groups = np.unique(groups, return_inverse=True)[1]
    count = groups.max() + 1
    scored = []
    (drawn,) = drawn_groups(count, 40, seed=5, portion=40)
    for row in drawn:
        members = [np.tile(np.flatnonzero(groups == k), int(n)) for k, n in enumerate(row)]
        rows = np.concatenate(members)
        scored.append(flat_scores(evaluate_probabilities(labels[rows], probabilities[rows], NAMES)))
    found = score_intervals(labels, probabilities, NAMES, groups, resamples=40, seed=5)
    for path, interval in found.items():
        values = [scores[path] for scores in scored]
        assert interval == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=1e-9), path


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_contains_the_value(seed):
    labels, probabilities = random_answers(seed)
    value = flat_scores(evaluate_probabilities(labels, probabilities, NAMES))
    found = score_intervals(labels, probabilities, NAMES, np.arange(200) // 2)
    assert set(found) == set(value)
    for path, (low, high) in found.items():
        assert low < value[path] < high, path
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_copies_in_groups_say_no_more_than_one_of_each():
    labels, probabilities = random_answers(1)
    thrice = np.repeat(labels, 3), np.repeat(probabilities, 3, axis=0)
    single = score_intervals(labels, probabilities, NAMES, np.arange(200))
    grouped = score_intervals(*thrice, NAMES, np.repeat(np.arange(200), 3))
    blind = score_intervals(*thrice, NAMES, np.arange(600))
    for path, (low, high) in grouped.items():
        assert (low, high) == pytest.approx(single[path], abs=1e-9), path
        assert blind[path][1] - blind[path][0] < 0.8 * (high - low), path


def test_the_seed_decides():
    labels, probabilities = random_answers(2)
    groups = np.array([f"patient {row // 3}" for row in range(200)])
    first = score_intervals(labels, probabilities, NAMES, groups, seed=1)
    assert score_intervals(labels, probabilities, NAMES, groups, seed=1) == first
    assert score_intervals(labels, probabilities, NAMES, groups, seed=2) != first


def test_portions_change_nothing(monkeypatch):
    labels, probabilities = random_answers(2)
    arguments = (labels, probabilities, NAMES, np.arange(200) // 3, 50)
    whole = score_intervals(*arguments), curve_bands(*arguments)
    monkeypatch.setattr(intervals, "_CELLS", 1500)
    assert (score_intervals(*arguments), curve_bands(*arguments)) == whole


def test_one_group_has_no_interval():
    labels, probabilities = random_answers(3)
    one = np.zeros(200, int)
    found = score_intervals(labels, probabilities, NAMES, one)
    assert set(found) == set(flat_scores(evaluate_probabilities(labels, probabilities, NAMES)))
    assert set(found.values()) == {None}
    assert curve_bands(labels, probabilities, NAMES, one) == {"roc": {}, "precision_recall": {}}
    everything = np.ones((200, 2), bool)
    assert ratio_intervals(everything, everything, one) == [None, None]


@pytest.mark.parametrize(("of_class", "defined"), [(1, False), (2, False), (6, True)])
def test_a_class_of_few_groups_has_no_interval(of_class, defined):
    """1, 2 and 6 of 60 groups are not drawn at all with about 36 %, 13 % and 0.2 %."""
    labels = np.r_[np.zeros(of_class, int), np.arange(60 - of_class) % 3 + 1]
    probabilities = (0.1 + np.eye(4))[labels] / 1.4
    probabilities[-1] = 0.25  # of class 0
    found = score_intervals(labels, probabilities, NAMES, np.arange(60))
    curves = curve_bands(labels, probabilities, NAMES, np.arange(60))
    needs = ("recall", "f1", "auroc", "average_precision")
    for path in [f"per_class.glioma.{key}" for key in needs] + [f"macro_{key}" for key in needs]:
        assert (found[path] is not None) == defined, path
    for bands in curves.values():
        assert ("glioma" in bands) == defined
        assert set(NAMES[1:]) <= set(bands)
    always = ("accuracy", "mcc", "kappa", "per_class.glioma.specificity", "per_class.notumor.f1")
    assert all(found[path] is not None for path in always)


def test_a_class_without_rows_has_the_interval_of_its_value():
    labels, probabilities = random_answers(4)
    kept = labels != 2
    labels, probabilities = labels[kept], probabilities[kept]
    value = flat_scores(evaluate_probabilities(labels, probabilities, NAMES))
    found = score_intervals(labels, probabilities, NAMES, np.arange(len(labels)))
    assert found["per_class.notumor.recall"] == [0, 0]
    assert {path for path in found if found[path] is None} == {
        path for path in value if value[path] is None
    }
    assert all(found[path][0] <= value[path] <= found[path][1] for path in found if found[path])


def test_rows_of_one_class_have_the_intervals_of_what_is_defined():
    probabilities = random_answers(5)[1]
    labels = np.zeros(200, int)
    value = flat_scores(evaluate_probabilities(labels, probabilities, NAMES))
    found = score_intervals(labels, probabilities, NAMES, np.arange(200) // 2)
    assert {path for path in found if found[path] is None} == {
        path for path in value if value[path] is None
    }


def test_all_right_is_certain():
    labels = np.arange(40) % 4
    found = score_intervals(labels, np.eye(4)[labels], NAMES, np.arange(40), resamples=200)
    assert set(map(tuple, found.values())) == {(1, 1)}
    curves = curve_bands(labels, np.eye(4)[labels], NAMES, np.arange(40), resamples=200)
    assert {tuple(band["low"]) for bands in curves.values() for band in bands.values()} == {
        (1.0,) * 101
    }


def on_grid(positive, scores, weights):
    """The two curves of scikit-learn at the grid."""
    false, true, _ = sklearn.roc_curve(
        positive, scores, sample_weight=weights, drop_intermediate=False
    )
    precision, recall, _ = sklearn.precision_recall_curve(positive, scores, sample_weight=weights)
    reached = [np.flatnonzero(recall >= g if g else recall > 0)[-1] for g in GRID]
    return np.interp(GRID, false, true), precision[reached]


@pytest.mark.parametrize("ties", [False, True])
def test_bands_are_the_percentiles_of_the_curves_of_scikit_learn(ties):
    labels, probabilities = random_answers(6, rows=80)
    probabilities = probabilities.round(1) if ties else probabilities
    groups = np.arange(80) // 2
    found = curve_bands(labels, probabilities, NAMES, groups, resamples=50, seed=3)
    (drawn,) = drawn_groups(40, 50, seed=3, portion=50)
    for k, name in enumerate(NAMES):
        curves = [on_grid(labels == k, probabilities[:, k], row[groups]) for row in drawn]
        for kind, each in zip(("roc", "precision_recall"), zip(*curves, strict=True), strict=True):
            low, high = np.quantile(each, (0.025, 0.975), axis=0)
            assert found[kind][name]["grid"] == list(GRID)
            assert found[kind][name]["low"] == pytest.approx(low, abs=1e-9)
            assert found[kind][name]["high"] == pytest.approx(high, abs=1e-9)


def test_where_the_roc_is_upright_its_upper_end_counts():
    labels = np.r_[np.zeros(50, int), np.ones(50, int)]
    scores = np.r_[np.linspace(0.6, 0.9, 50), np.linspace(0.1, 0.4, 50)]
    bands = curve_bands(labels, np.stack([scores, 1 - scores], axis=1), "ab", np.arange(100))
    assert bands["roc"]["a"]["low"][0] == 1


def test_bands_contain_the_curve():
    labels, probabilities = random_answers(7)
    curves = curve_bands(labels, probabilities, NAMES, np.arange(200))
    for k, name in enumerate(NAMES):
        roc, precision = on_grid(labels == k, probabilities[:, k], np.ones(200))
        for kind, curve in (("roc", roc), ("precision_recall", precision)):
            low, high = (np.array(curves[kind][name][end]) for end in ("low", "high"))
            assert ((low <= curve) & (curve <= high)).mean() > 0.98
    assert json.loads(json.dumps(curves, allow_nan=False)) == curves


def test_a_ratio_that_is_undefined_has_no_interval():
    rng = np.random.default_rng(0)
    whole = np.stack([np.ones(100, bool), rng.random(100) < 0.5, np.zeros(100, bool)], axis=1)
    part = whole & (rng.random((100, 1)) < 0.7)
    everyone, half, nobody = ratio_intervals(part, whole, np.arange(100))
    for k, (low, high) in enumerate((everyone, half)):
        assert low < part[:, k].sum() / whole[:, k].sum() < high
    assert half[1] - half[0] > everyone[1] - everyone[0]
    assert nobody is None


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution():
    right = np.random.default_rng(1).random(400) < 0.8
    (interval,) = ratio_intervals(
        right[:, None], np.ones((400, 1), bool), np.arange(400), resamples=4000
    )
    expected = binom.ppf([0.025, 0.975], 400, right.mean()) / 400
    assert interval == pytest.approx(expected, abs=1 / 400 + 1e-9)
