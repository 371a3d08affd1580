import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import binomtest

from btray.core.calibration import (
    CONFIDENCE,
    COVERAGE,
    IN_DISTRIBUTION,
    TARGET_ERROR,
    Calibration,
    calibrated,
    conformal_threshold,
    energy,
    fit_calibration,
    fit_scaling,
    fit_temperature,
    group_weights,
    scaled,
    selective_threshold,
)
from btray.core.labels import CLASS_NAMES


def exchangeable(seed, rows, spread=2.0, classes=4):
    """Logits whose softmax is the very distribution their labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=spread, size=(rows, classes))
    return logits, drawn(rng, softmax(logits, axis=1))


def drawn(rng, probabilities):
    below = rng.random((len(probabilities), 1)) > probabilities.cumsum(axis=1)
    return below.sum(axis=1).clip(max=probabilities.shape[1] - 1)


def by_hand(temperature, exponent):
    return Calibration(
        temperature=temperature,
        entropy_exponent=exponent,
        coverage=0.95,
        set_threshold=0,
        ood_threshold=0,
        rows=1,
    )


def is_finite(calibration):
    values = calibration.model_dump().values()
    return all(np.isfinite([value for value in values if value is not None]))


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


@pytest.mark.parametrize("exponent", [-0.05, 0.0, 0.3, 0.7])
def test_scaling_by_entropy_is_found_again(exponent):
    rng = np.random.default_rng(14)
    logits = rng.normal(scale=1.5, size=(20_000, 4))
    labels = drawn(rng, calibrated(logits, by_hand(0.8, exponent)))
    assert fit_scaling(logits, labels) == pytest.approx((0.8, exponent), abs=0.05)


def test_scaling_by_entropy_mends_what_one_temperature_cannot():
    rng = np.random.default_rng(15)
    logits = rng.normal(scale=1.5, size=(4000, 4))
    labels = drawn(rng, calibrated(logits, by_hand(1.2, 0.7)))
    one = fit_temperature(logits[:1000], labels[:1000])
    both = fit_scaling(logits[:1000], labels[:1000])

    def fresh_loss(temperature, exponent):
        probabilities = calibrated(logits[1000:], by_hand(temperature, exponent))
        return -np.log(probabilities[np.arange(3000), labels[1000:]]).mean()

    assert fresh_loss(*both) < fresh_loss(one, 0.0) - 0.005


@pytest.mark.parametrize("seed", range(5))
def test_few_rows_hardly_leave_one_temperature(seed):
    _, exponent = fit_scaling(*exchangeable(seed, 12))
    assert abs(exponent) < 0.25


@pytest.mark.parametrize("exponent", [-0.1, 0.5, 1.0])
def test_surer_logits_are_surer_probabilities(exponent):
    logits = np.zeros((1000, 4))
    logits[:, 2] = np.linspace(0, 20, 1000)
    top = calibrated(logits, by_hand(1.0, exponent))[:, 2]
    assert (np.diff(top) >= 0).all()


def test_an_exponent_of_zero_is_plain_temperature_scaling():
    logits, _ = exchangeable(16, 100)
    assert (scaled(logits, by_hand(1.7, 0.0)) == logits / 1.7).all()


@given(
    arrays(np.float32, (6, 4), elements=st.floats(-1e4, 1e4, width=32)),
    st.floats(0.05, 20),
    st.floats(-0.1, 1),
)
def test_calibrated_keeps_the_answer_and_adds_up_to_one(logits, temperature, exponent):
    calibration = by_hand(temperature, exponent)
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


def patients(rng, groups):
    """Probabilities of the true class and groups: rows of the large ones are easy, and alike."""
    hard = rng.random(groups) < 0.1
    sizes = np.where(hard, 1, 20)
    own = np.where(hard, 0.2, 0.8)[:, None] + 0.05 * rng.random((groups, 20))
    units = np.repeat(np.arange(groups), sizes)
    return own[np.arange(20) < sizes[:, None]], units


def test_a_row_of_a_fresh_patient_is_covered_as_often_as_promised():
    by_groups, by_rows = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        own, units = patients(rng, 60)
        fresh, fresh_units = patients(rng, 500)
        weights = group_weights(fresh_units)
        for found, threshold in (
            (by_groups, conformal_threshold(own, COVERAGE, group_weights(units))),
            (by_rows, conformal_threshold(own, COVERAGE)),
        ):
            found.append(np.average(fresh >= threshold, weights=weights))
    assert COVERAGE - 0.005 < np.mean(by_groups) < COVERAGE + 2 / 61 + 0.005
    assert np.mean(by_rows) < COVERAGE - 0.01  # what the groups are for


def test_copies_within_a_group_change_no_threshold():
    rng = np.random.default_rng(0)
    own, units = rng.random(300), rng.integers(0, 120, 300)
    once = conformal_threshold(own, COVERAGE, group_weights(units))
    copied = np.repeat(own, 7), np.repeat(units, 7)
    assert conformal_threshold(copied[0], COVERAGE, group_weights(copied[1])) == once


@pytest.mark.parametrize("percent", [50, 90, 95])
def test_rows_that_are_each_their_own_group_give_the_plain_rank(percent):
    rng = np.random.default_rng(1)
    for rows in range(1, 400):
        own = rng.random(rows)
        rank = (rows + 1) * (100 - percent) // 100
        expected = np.sort(own)[rank - 1] if rank else 0.0
        assert conformal_threshold(own, percent / 100) == expected
        weights = group_weights(np.arange(rows))
        assert conformal_threshold(own, percent / 100, weights) == expected


def test_the_correction_for_few_counts_groups_and_not_rows():
    own, units = np.linspace(0.5, 0.9, 180), np.repeat(np.arange(18), 10)
    assert conformal_threshold(own, 0.95) > 0
    assert conformal_threshold(own, 0.95, group_weights(units)) == 0


def test_group_weights_add_up_to_one_in_every_group():
    weights = group_weights(np.array([7, -1, 7, 7, 3]))
    assert weights == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3, 1])


def test_fitting_counts_groups_and_by_default_every_row_is_one():
    logits, labels = exchangeable(10, 400)
    alone = fit_calibration(logits, labels)
    assert alone == fit_calibration(logits, labels, np.random.default_rng(0).permutation(400))
    assert alone.groups == 400
    grouped = fit_calibration(logits, labels, np.arange(400) // 8)
    assert (grouped.groups, grouped.rows) == (50, 400)
    assert grouped.set_threshold != alone.set_threshold


def test_arrays_of_other_lengths_are_refused():
    logits, labels = exchangeable(11, 10)
    with pytest.raises(ValueError, match="one row each"):
        fit_calibration(logits, labels, np.arange(9))


def test_the_error_of_fresh_answers_is_as_seldom_above_the_target_as_promised():
    fresh = softmax(exchangeable(1000, 10_000, spread=4.0)[0], axis=1).max(axis=1)
    errors, shares = [], []
    for seed in range(200):
        logits, labels = exchangeable(seed, 500, spread=4.0)
        probabilities = softmax(logits, axis=1)
        right = probabilities.argmax(axis=1) == labels
        threshold = selective_threshold(probabilities.max(axis=1), right, 0.1)
        answered = fresh >= (2 if threshold is None else threshold)
        errors.append((1 - fresh[answered]).mean() if answered.any() else 0)
        shares.append(answered.mean())
    assert np.mean(np.array(errors) > 0.1) <= 1 - CONFIDENCE
    assert np.mean(shares) > 0.6  # of the 81 % that could be answered if all were known


def test_the_threshold_is_the_least_that_the_exact_bound_accepts():
    rng = np.random.default_rng(2)
    confidence = np.sort(rng.random(900))[::-1]
    right = np.arange(900) < 600
    right[rng.choice(600, 3, replace=False)] = False
    tail = (1 - CONFIDENCE) / 10

    def bound(answered):
        test = binomtest(int((~right[:answered]).sum()), answered, alternative="less")
        return test.proportion_ci(1 - tail, method="exact").high

    accepted = [n for n in range(500, 700) if bound(n) <= TARGET_ERROR]
    threshold = selective_threshold(confidence, right, TARGET_ERROR)
    assert threshold == confidence[max(accepted) - 1]


@pytest.mark.parametrize(("rows", "shown"), [(1, False), (251, False), (252, True)])
def test_answers_without_a_mistake_are_no_proof_when_they_are_few(rows, shown):
    confidence = np.random.default_rng(3).random(rows)
    threshold = selective_threshold(confidence, np.ones(rows, dtype=bool), TARGET_ERROR)
    assert threshold == (confidence.min() if shown else None)


def test_copies_are_no_proof():
    confidence, right = np.random.default_rng(4).random(50), np.ones(2000, dtype=bool)
    copies, units = np.repeat(confidence, 40), np.repeat(np.arange(50), 40)
    assert selective_threshold(copies + 1e-6 * np.arange(2000), right, TARGET_ERROR) is not None
    assert selective_threshold(copies, right, TARGET_ERROR, group_weights(units)) is None


def test_no_threshold_where_every_answer_is_wrong():
    confidence = np.random.default_rng(5).random(1000)
    assert selective_threshold(confidence, np.zeros(1000, dtype=bool), TARGET_ERROR) is None


def test_rows_of_one_confidence_are_answered_together():
    confidence = np.repeat([0.9, 0.6], 500)
    right = np.arange(1000) < 700
    assert selective_threshold(confidence, right, TARGET_ERROR) == 0.9


def test_the_tumour_threshold_calls_enough_of_the_healthy_healthy():
    logits, labels = exchangeable(12, 2000)
    calibration = fit_calibration(logits, labels, class_names=CLASS_NAMES)
    scores = 1 - calibrated(logits, calibration)[:, CLASS_NAMES.index("notumor")]
    healthy = scores[labels == CLASS_NAMES.index("notumor")]
    below = (healthy < calibration.tumour_threshold).mean()
    assert calibration.specificity == below
    assert 0.95 <= below < 0.95 + 1.5 / len(healthy)


@pytest.mark.parametrize(
    ("names", "kept"), [(None, range(4)), ("abcd", range(4)), (CLASS_NAMES, (0, 1, 3))]
)
def test_no_tumour_threshold_without_the_class_or_its_rows(names, kept):
    logits, labels = exchangeable(13, 200)
    rows = np.isin(labels, kept)
    calibration = fit_calibration(logits[rows], labels[rows], class_names=names)
    assert calibration.tumour_threshold is None
    assert calibration.specificity is None


def test_the_calibration_of_an_older_bundle_is_read():
    old = Calibration.model_validate(
        {"temperature": 1, "coverage": 0.95, "set_threshold": 0, "ood_threshold": 0, "rows": 1}
    )
    fitted_later = ("groups", "target_error", "abstain_threshold", "tumour_threshold")
    assert [getattr(old, name) for name in fitted_later] == [None] * 4
    assert old.entropy_exponent == 0
