import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from btray.core.binary import (
    NO_TUMOUR,
    OperatingPoint,
    choose_threshold,
    has_tumour,
    read_out,
    tumour_score,
)
from btray.core.labels import CLASS_NAMES


def random_rows(seed, rows=300):
    rng = np.random.default_rng(seed)
    tumour = rng.random(rows) < 0.7
    return tumour, 1 / (1 + np.exp(-rng.normal(size=rows) - 2 * tumour + 1))


@st.composite
def few_rows(draw):
    """Rows with ties, often all with a tumour or none, and a threshold."""
    rows = draw(st.integers(1, 25))
    tumour = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    scores = draw(st.lists(st.integers(0, 5), min_size=rows, max_size=rows))
    return np.array(tumour), np.array(scores) / 5, draw(st.integers(0, 6)) / 5


def specificity_at(threshold, tumour, scores):
    return (scores[~tumour] < threshold).sum() / (~tumour).sum()


def test_the_score_is_all_but_no_tumour():
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 0]])
    assert tumour_score(probabilities, CLASS_NAMES) == pytest.approx([0.7, 0])
    assert has_tumour(np.array([0, 1, 2, 3]), CLASS_NAMES).tolist() == [True, True, False, True]
    assert tumour_score(probabilities[:, ::-1], CLASS_NAMES[::-1]) == pytest.approx([0.7, 0])


@pytest.mark.parametrize("names", [("glioma", "meningioma"), (NO_TUMOUR,)])
def test_classes_that_do_not_say_it_have_no_score(names):
    probabilities = np.full((3, len(names)), 1 / len(names))
    assert tumour_score(probabilities, names) is None
    assert has_tumour(np.zeros(3, int), names) is None


@settings(max_examples=40)
@given(few_rows(), st.sampled_from([0.01, 0.5, 0.8, 0.9, 0.95, 1.0]))
def test_the_threshold_is_the_smallest_that_is_specific_enough(drawn, target):
    tumour, scores, _ = drawn
    point = choose_threshold(tumour, scores, target)
    if tumour.all():
        assert point is None
        return
    assert specificity_at(point.threshold, tumour, scores) >= target
    assert specificity_at(np.nextafter(point.threshold, -1), tumour, scores) < target
    assert point.specificity == specificity_at(point.threshold, tumour, scores)
    if tumour.any():
        assert point.sensitivity == (scores[tumour] >= point.threshold).mean()
    else:
        assert point.sensitivity is None


@pytest.mark.parametrize(("target", "below"), [(0.9, 18), (0.95, 19), (0.96, 20), (1.0, 20)])
def test_the_specificity_asked_for_is_met_to_the_row(target, below):
    scores = np.arange(20) / 20
    point = choose_threshold(np.zeros(20, bool), scores, target)
    assert (scores < point.threshold).sum() == below


def test_nothing_is_called_a_tumour_when_the_highest_score_is_of_too_many_without():
    point = choose_threshold(np.array([True, False, False]), np.ones(3))
    assert (point.threshold > 1, point.specificity, point.sensitivity) == (True, 1, 0)


@pytest.mark.parametrize("target", [0, -0.1, 1.01])
def test_an_impossible_specificity_is_refused(target):
    with pytest.raises(ValueError, match="specificity"):
        choose_threshold(*random_rows(0), target)


def test_an_operating_point_survives_json_to_the_bit():
    point = choose_threshold(*random_rows(1))
    assert OperatingPoint.model_validate_json(point.model_dump_json()) == point


def test_the_read_out_on_the_rows_of_the_choice_is_the_chosen_point():
    tumour, scores = random_rows(2)
    point = choose_threshold(tumour, scores)
    found = read_out(tumour, scores, point.threshold, resamples=20)
    assert found["specificity"] == point.specificity >= 0.95
    assert found["sensitivity"] == point.sensitivity
    assert found["roc_sensitivity_at_specificity"]["0.95"] == point.sensitivity


@settings(max_examples=40)
@given(few_rows())
def test_the_read_out_is_that_of_scikit_learn_or_none(drawn):
    tumour, scores, threshold = drawn
    called = scores >= threshold
    found = read_out(tumour, scores, threshold, resamples=10)
    counts = sklearn.confusion_matrix(tumour, called, labels=[False, True]).ravel()
    assert [found[key] for key in ("tn", "fp", "fn", "tp")] == counts.tolist()
    expected = {
        "prevalence": tumour.mean(),
        "sensitivity": sklearn.recall_score(tumour, called) if tumour.any() else None,
        "specificity": None
        if tumour.all()
        else sklearn.recall_score(tumour, called, pos_label=False),
        "ppv": sklearn.precision_score(tumour, called) if called.any() else None,
        "npv": None if called.all() else sklearn.precision_score(tumour, called, pos_label=False),
        "auroc": sklearn.roc_auc_score(tumour, scores) if len(set(tumour)) == 2 else None,
        "average_precision": sklearn.average_precision_score(tumour, scores)
        if tumour.any()
        else None,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@settings(max_examples=40)
@given(few_rows())
def test_sensitivities_at_fixed_specificities_are_read_off_the_roc(drawn):
    tumour, scores, threshold = drawn
    found = read_out(tumour, scores, threshold, resamples=1)["roc_sensitivity_at_specificity"]
    assert list(found) == ["0.90", "0.95", "0.99"]
    if tumour.all() or not tumour.any():
        assert set(found.values()) == {None}
        return
    false, true, _ = sklearn.roc_curve(tumour, scores, drop_intermediate=False)
    for key, value in found.items():
        assert value == pytest.approx(true[1 - false >= float(key) - 1e-12].max(), abs=1e-12)


def test_intervals_contain_the_value_and_hold_groups_together():
    tumour, scores = random_rows(3)
    single = read_out(tumour, scores, 0.5)
    copies = np.repeat(tumour, 4), np.repeat(scores, 4)
    grouped = read_out(*copies, 0.5, groups=np.repeat(np.arange(300), 4))
    blind = read_out(*copies, 0.5)
    assert list(single["intervals"]) == ["sensitivity", "specificity", "ppv", "npv"]
    for key, (low, high) in single["intervals"].items():
        assert low < single[key] < high
        assert grouped["intervals"][key] == pytest.approx([low, high], abs=1e-9)
        assert np.diff(blind["intervals"][key]) < 0.7 * (high - low)
    assert read_out(tumour, scores, 0.5) == single


def test_one_group_and_undefined_ratios_have_no_interval():
    tumour, scores = random_rows(4)
    one = read_out(tumour, scores, 0.5, groups=np.zeros(300, int))
    assert set(one["intervals"].values()) == {None}
    nothing_called = read_out(tumour, scores, 2.0)
    assert nothing_called["ppv"] is None
    assert nothing_called["intervals"]["ppv"] is None
    assert nothing_called["intervals"]["sensitivity"] == [0, 0]


def test_no_rows_are_undefined():
    found = read_out(np.zeros(0, bool), np.zeros(0), 0.5)
    assert found["rows"] == found["tp"] == 0
    assert {found[key] for key in ("prevalence", "sensitivity", "ppv", "auroc")} == {None}
