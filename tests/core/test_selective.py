import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from btray.core.calibration import Calibration, calibrated, fit_calibration
from btray.core.selective import POINTS, conformal, selective


def answers(seed, rows=600, classes=4, spread=3.0):
    """Labels drawn from the very probabilities, and the logits of those."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=spread, size=(rows, classes))
    cumulative = softmax(logits, axis=1).cumsum(axis=1)
    labels = (rng.random((rows, 1)) > cumulative).sum(axis=1).clip(max=classes - 1)
    return labels, logits


def fitted(**changes):
    fields = {
        "temperature": 1,
        "coverage": 0.9,
        "set_threshold": 0.3,
        "ood_threshold": 0,
        "rows": 1,
    }
    return Calibration.model_validate(fields | changes)


def ranked(wrong):
    """Labels and probabilities of answers from the surest on, wrong where `wrong` is 1."""
    confidence = np.linspace(0.99, 0.6, len(wrong))
    return np.array(wrong), np.stack([confidence, 1 - confidence], axis=1)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(0, 2))
def test_the_curve_and_its_area_are_those_of_the_definition(seed, rows, decimals):
    labels, logits = answers(seed, rows)
    probabilities = softmax(logits.round(decimals), axis=1)
    confidence, wrong = probabilities.max(axis=1), probabilities.argmax(axis=1) != labels
    found = selective(labels, probabilities, fitted())
    risks = [wrong[confidence >= threshold].mean() for threshold in confidence]
    thresholds = np.unique(confidence)[::-1]
    assert found["aurc"] == pytest.approx(np.mean(risks), abs=1e-12)
    assert found["curve"]["threshold"] == thresholds.tolist()
    assert found["curve"]["coverage"] == pytest.approx(
        [(confidence >= threshold).mean() for threshold in thresholds]
    )
    assert found["curve"]["risk"] == pytest.approx(
        [wrong[confidence >= threshold].mean() for threshold in thresholds]
    )
    assert found["e_aurc"] >= 0


def test_the_area_by_hand():
    found = selective(*ranked([0, 1, 0, 1]), fitted())
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert found["e_aurc"] == pytest.approx(found["aurc"] - (0 + 0 + 1 / 3 + 2 / 4) / 4)


@pytest.mark.parametrize("wrong", [[0] * 50, [1] * 50, [0] * 40 + [1] * 10])
def test_nothing_is_above_the_best_order(wrong):
    assert selective(*ranked(wrong), fitted())["e_aurc"] == 0


def test_the_area_is_near_the_error_when_the_confidence_says_nothing():
    rng = np.random.default_rng(0)
    found = selective(*ranked((rng.random(20_000) < 0.2).astype(int)), fitted())
    assert found["aurc"] == pytest.approx(0.2, abs=0.02)


def test_a_long_curve_is_thinned_and_ends_with_all_rows_answered():
    labels, logits = answers(1, rows=5000)
    probabilities = softmax(logits, axis=1)
    curve = selective(labels, probabilities, fitted())["curve"]
    assert len(curve["coverage"]) == len(curve["risk"]) == len(curve["threshold"]) == POINTS
    assert curve["coverage"][0] == 1 / 5000
    assert curve["coverage"][-1] == 1
    assert curve["risk"][-1] == pytest.approx((probabilities.argmax(axis=1) != labels).mean())
    assert max(np.diff(curve["coverage"])) < 2 / POINTS


def test_the_operating_point_is_at_the_threshold_of_the_bundle():
    labels, probabilities = ranked([0, 0, 1, 0, 1])
    calibration = fitted(target_error=0.3, abstain_threshold=probabilities[3, 0])
    found = selective(labels, probabilities, calibration)
    point = found["operating_point"]
    assert (point["answered"], point["wrong"]) == (4, 1)
    assert (point["coverage"], point["error"]) == (0.8, 0.25)
    assert found["target_error"] == 0.3
    assert found["abstain_threshold"] == probabilities[3, 0]


def test_the_intervals_are_over_groups():
    labels, logits = answers(2, rows=400, spread=1.0)
    probabilities = softmax(np.repeat(logits, 5, axis=0), axis=1)
    calibration = fitted(abstain_threshold=0.5)
    labels = np.repeat(labels, 5)

    def widths(groups):
        point = selective(labels, probabilities, calibration, groups)["operating_point"]
        sets = conformal(labels, probabilities, calibration, groups)
        pairs = (point["coverage_interval"], point["error_interval"], sets["coverage_interval"])
        inside = zip(pairs, (point["coverage"], point["error"], sets["coverage"]), strict=True)
        assert all(low < value < high for (low, high), value in inside)
        return np.diff(pairs)[:, 0]

    ratio = widths(np.repeat(np.arange(400), 5)) / widths(None)
    assert ratio == pytest.approx(np.full(3, np.sqrt(5)), rel=0.15)


@pytest.mark.parametrize("threshold", [None, 0.999])
def test_without_a_threshold_or_answers_the_error_is_not_defined(threshold):
    found = selective(*ranked([0, 1, 0]), fitted(abstain_threshold=threshold))
    point = found["operating_point"]
    if threshold is None:
        assert point is None
    else:
        assert (point["answered"], point["coverage"]) == (0, 0)
        assert point["error"] is None
        assert point["error_interval"] is None
    json.dumps(found, allow_nan=False)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0, 1))
def test_the_sets_are_counted_one_by_one(seed, rows, threshold):
    labels, logits = answers(seed, rows)
    probabilities = softmax(logits, axis=1)
    groups = np.random.default_rng(seed).integers(0, 5, rows)
    found = conformal(labels, probabilities, fitted(set_threshold=threshold), groups)
    sets = [{k for k in range(4) if row[k] >= threshold} for row in probabilities]
    held = np.array([label in one for label, one in zip(labels, sets, strict=True)])
    sizes = [len(one) for one in sets]
    assert found["coverage"] == pytest.approx(held.mean())
    assert found["group_coverage"] == pytest.approx(
        np.mean([held[groups == group].mean() for group in np.unique(groups)])
    )
    assert found["coverage_per_class"] == [
        pytest.approx(held[labels == k].mean()) if (labels == k).any() else None for k in range(4)
    ]
    assert found["mean_set_size"] == pytest.approx(np.mean(sizes))
    assert found["set_sizes"] == [sizes.count(size) for size in range(5)]
    assert found["empty_share"] == pytest.approx(sizes.count(0) / rows)


def test_fresh_rows_keep_what_the_bundle_promises():
    labels, logits = answers(3, rows=3000, spread=6.0)
    calibration = fit_calibration(logits, labels)
    labels, logits = answers(4, rows=3000, spread=6.0)
    probabilities = calibrated(logits, calibration)
    sets = conformal(labels, probabilities, calibration)
    assert sets["nominal_coverage"] == 0.95
    assert sets["coverage"] == sets["group_coverage"] == pytest.approx(0.95, abs=0.02)
    point = selective(labels, probabilities, calibration)["operating_point"]
    assert point["error"] <= calibration.target_error
    assert point["coverage"] > 0.4


def test_no_rows_give_none():
    labels, probabilities = np.empty(0, dtype=np.int64), np.empty((0, 4))
    sets = conformal(labels, probabilities, fitted())
    undefined = {"coverage", "coverage_interval", "group_coverage", "mean_set_size", "empty_share"}
    assert {name for name, value in sets.items() if value is None} == undefined
    assert sets["coverage_per_class"] == [None] * 4
    found = selective(labels, probabilities, fitted(abstain_threshold=0.5))
    assert (found["aurc"], found["e_aurc"], found["operating_point"]) == (None, None, None)
    json.dumps([sets, found], allow_nan=False)
