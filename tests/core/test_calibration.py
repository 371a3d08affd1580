import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from btray.core.calibration import (
    COVERAGE,
    IN_DISTRIBUTION,
    Calibration,
    calibrated,
    conformal_threshold,
    energy,
    fit_calibration,
    fit_temperature,
)


def exchangeable(seed, rows, spread=2.0, classes=4):
    """Logits whose softmax is the very distribution their labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=spread, size=(rows, classes))
    cumulative = softmax(logits, axis=1).cumsum(axis=1)
    labels = (rng.random((rows, 1)) > cumulative).sum(axis=1).clip(max=classes - 1)
    return logits, labels


def is_finite(calibration):
    return all(np.isfinite(list(calibration.model_dump().values())))


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 10.0])
def test_temperature_undoes_a_scaling_of_the_logits(scale):
    logits, labels = exchangeable(0, 20_000)
    assert fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.05)


def test_temperature_has_the_least_loss():
    logits, labels = exchangeable(1, 500)
    best = fit_temperature(logits * 4, labels)

    def loss(temperature):
        own = softmax(logits * 4 / temperature, axis=1)[np.arange(500), labels]
        return -np.log(own).mean()

    assert loss(best) < min(loss(best * 1.02), loss(best / 1.02))


@given(
    arrays(np.float32, (6, 4), elements=st.floats(-1e4, 1e4, width=32)),
    st.floats(0.05, 20),
)
def test_calibrated_keeps_the_answer_and_adds_up_to_one(logits, temperature):
    calibration = Calibration(
        temperature=temperature, coverage=0.95, set_threshold=0, ood_threshold=0, rows=1
    )
    probabilities = calibrated(logits, calibration)
    assert probabilities.dtype == np.float64
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(6), abs=1e-12)
    top = np.take_along_axis(probabilities, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert (top == probabilities.max(axis=1)).all()


def test_the_most_probable_class_is_that_of_the_largest_logit():
    logits, labels = exchangeable(2, 1000)
    probabilities = calibrated(logits * 5, fit_calibration(logits * 5, labels))
    assert (probabilities.argmax(axis=1) == logits.argmax(axis=1)).all()


def test_sets_of_fresh_rows_hold_the_true_class_as_often_as_promised():
    calibration = fit_calibration(*exchangeable(3, 2000))
    logits, labels = exchangeable(4, 20_000)
    own = calibrated(logits, calibration)[np.arange(len(labels)), labels]
    covered = (own >= calibration.set_threshold).mean()
    # The coverage over fits is beta-distributed, here with a standard deviation of 0.5 %.
    assert covered == pytest.approx(COVERAGE, abs=0.02)


def test_mean_coverage_over_many_small_fits_is_no_less_than_promised():
    covered = []
    for seed in range(200):
        own = np.random.default_rng(seed).random(99 + 1000)
        covered.append((own[99:] >= conformal_threshold(own[:99], COVERAGE)).mean())
    assert COVERAGE - 0.005 < np.mean(covered) < COVERAGE + 0.01


@pytest.mark.parametrize(("rows", "expected"), [(1, 0.0), (18, 0.0), (19, 0.5), (39, 0.51)])
def test_the_threshold_is_the_rank_of_the_coverage_or_zero(rows, expected):
    own = np.random.default_rng(0).permutation(0.5 + 0.01 * np.arange(rows))
    assert conformal_threshold(own, 0.95) == pytest.approx(expected)


def test_energy_by_hand():
    logits = np.array([[0.0, 0.0], [np.log(3), np.log(5)]])
    assert energy(logits) == pytest.approx([-np.log(2), -np.log(8)])


def test_energy_is_higher_for_less_certain_logits():
    logits = np.array([[9.0, 0, 0], [1.0, 0, 0]])
    assert energy(logits)[0] < energy(logits)[1]


@pytest.mark.parametrize("rows", [1, 2, 99, 100, 101, 500])
def test_at_most_one_in_a_hundred_of_the_fitting_rows_is_out_of_distribution(rows):
    logits, labels = exchangeable(5, rows)
    strange = energy(logits) > fit_calibration(logits, labels).ood_threshold
    assert strange.sum() <= (1 - IN_DISTRIBUTION) * rows


def test_the_threshold_is_no_larger_than_it_needs_to_be():
    logits, labels = exchangeable(6, 500)
    strange = energy(logits) > fit_calibration(logits, labels).ood_threshold
    assert strange.sum() == 4  # 1 % of the 499 rows above the first, rounded down


def test_deterministic():
    logits, labels = exchangeable(7, 200)
    assert fit_calibration(logits, labels) == fit_calibration(logits.copy(), labels.copy())


def test_float32_logits_are_not_changed_and_give_plain_numbers():
    logits, labels = exchangeable(8, 50)
    single = logits.astype(np.float32)
    before = single.copy()
    calibration = fit_calibration(single, labels)
    assert (single == before).all()
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


def test_perfectly_separated_rows():
    labels = np.arange(40) % 4
    logits = 12 * np.eye(4)[labels]
    calibration = fit_calibration(logits, labels)
    assert is_finite(calibration)
    own = calibrated(logits, calibration)[np.arange(40), labels]
    assert (own >= calibration.set_threshold).all()


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_too_few_rows_put_every_class_in_every_set(rows):
    calibration = fit_calibration(*exchangeable(9, rows))
    assert is_finite(calibration)
    assert calibration.set_threshold == 0
    assert calibration.rows == rows


@pytest.mark.parametrize("right", [True, False])
def test_extreme_logits_give_finite_numbers(right):
    labels = np.arange(40) % 4
    signs = np.eye(4)[labels if right else (labels + 1) % 4] * 2 - 1
    logits = (1e4 * signs).astype(np.float32)
    calibration = fit_calibration(logits, labels)
    assert is_finite(calibration)
    assert np.isfinite(calibrated(logits, calibration)).all()


def test_logits_that_say_nothing_give_finite_numbers():
    calibration = fit_calibration(np.zeros((40, 4)), np.arange(40) % 4)
    assert is_finite(calibration)
    assert calibration.set_threshold == pytest.approx(0.25)
