import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as sklearn

from btray.core.calibration import Calibration
from btray.core.reliability import before_and_after, reliability


def answers(seed, rows=600, classes=4, spread=3.0):
    """Labels drawn from the very probabilities, and the logits of those."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=spread, size=(rows, classes))
    cumulative = softmax(logits, axis=1).cumsum(axis=1)
    labels = (rng.random((rows, 1)) > cumulative).sum(axis=1).clip(max=classes - 1)
    return labels, logits


def calibration(temperature):
    return Calibration(
        temperature=temperature, coverage=0.95, set_threshold=0, ood_threshold=0, rows=1
    )


def gaps_by_hand(labels, probabilities, bins):
    """Return ECE and MCE, bin by bin."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    ece, mce = 0.0, 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            gap = abs(confidence[inside].mean() - right[inside].mean())
            ece, mce = ece + gap * inside.mean(), max(mce, gap)
    return ece, mce


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 5), st.integers(1, 20))
def test_the_scores_are_those_of_scikit_learn_and_of_the_definition(seed, rows, classes, bins):
    labels, logits = answers(seed, rows, classes)
    probabilities = softmax(logits, axis=1)
    found, names = reliability(labels, probabilities, bins), np.arange(classes)
    assert found["nll"] == pytest.approx(
        sklearn.log_loss(labels, probabilities, labels=names), abs=1e-9
    )
    assert found["brier"] == pytest.approx(
        sklearn.brier_score_loss(labels, probabilities, labels=names, scale_by_half=False)
        if classes > 2
        else 2 * sklearn.brier_score_loss(labels, probabilities[:, 1], labels=names),
        abs=1e-9,
    )
    by_hand = gaps_by_hand(labels, probabilities, bins)
    assert (found["ece"], found["mce"]) == pytest.approx(by_hand, abs=1e-12)
    assert sum(one["count"] for one in found["bins"]) == found["rows"] == rows


def test_the_gaps_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.6, 0.6])
    labels = np.array([0, 0, 0, 1, 0, 1])
    found = reliability(labels, np.stack([confidence, 1 - confidence], axis=1), bins=10)
    assert found["ece"] == pytest.approx((4 * 0.20 + 2 * 0.10) / 6)
    assert found["mce"] == pytest.approx(0.20)
    assert found["bins"][9] == pytest.approx(
        {"low": 0.9, "high": 1.0, "count": 4, "confidence": 0.95, "accuracy": 0.75}
    )
    assert found["bins"][5] == pytest.approx(
        {"low": 0.5, "high": 0.6, "count": 2, "confidence": 0.6, "accuracy": 0.5}
    )
    assert [one["confidence"] for one in found["bins"] if not one["count"]] == [None] * 8


def test_the_bins_of_the_adaptive_error_hold_as_many_rows_each():
    labels, logits = answers(1, rows=90)
    probabilities = softmax(logits, axis=1)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    parts = np.split(np.argsort(confidence), 15)
    expected = np.mean([abs(confidence[part].mean() - right[part].mean()) for part in parts])
    assert reliability(labels, probabilities)["adaptive_ece"] == pytest.approx(expected)


@pytest.mark.parametrize("score", ["ece", "mce", "adaptive_ece", "brier", "nll"])
def test_the_order_of_rows_alike_does_not_matter(score):
    labels, logits = answers(2, rows=300)
    probabilities = softmax(logits.round(), axis=1)
    found = reliability(labels, probabilities)[score]
    assert reliability(labels[::-1], probabilities[::-1])[score] == pytest.approx(found)


def test_probabilities_that_are_true_have_no_error_and_boasting_ones_have():
    labels, logits = answers(3, rows=50_000)
    honest = reliability(labels, softmax(logits, axis=1))
    boasting = reliability(labels, softmax(3 * logits, axis=1))
    assert max(honest["ece"], honest["adaptive_ece"]) < 0.01
    assert min(boasting["ece"], boasting["adaptive_ece"]) > 0.05
    assert honest["nll"] < boasting["nll"]
    assert honest["brier"] < boasting["brier"]


def test_the_temperature_undoes_the_scaling_that_was_done():
    labels, logits = answers(4)
    found = before_and_after(labels, (4 * logits).astype(np.float32), calibration(4.0))
    assert found["temperature"] == 4.0
    assert found["before"] == reliability(
        labels, softmax((4 * logits).astype(np.float32).astype(np.float64), axis=1)
    )
    expected = reliability(labels, softmax(logits, axis=1))
    assert found["after"]["ece"] == pytest.approx(expected["ece"], abs=1e-4)
    assert found["after"]["nll"] == pytest.approx(expected["nll"], abs=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_or_none_give_json_without_nan(rows):
    labels, logits = answers(5, rows=rows)
    found = before_and_after(labels, logits, calibration(1.0))
    json.dumps(found, allow_nan=False)
    for score in ("ece", "mce", "adaptive_ece", "brier", "nll"):
        assert (found["after"][score] is None) == (rows == 0)


def test_probabilities_of_one_and_nothing():
    found = reliability(np.array([0, 1, 1]), np.eye(2)[[0, 1, 0]])
    assert found["ece"] == pytest.approx(1 / 3)
    assert found["brier"] == pytest.approx(2 / 3)
    assert np.isfinite(found["nll"])
