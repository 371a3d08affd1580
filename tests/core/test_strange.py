import numpy as np
import pytest
import torch

from btray.core.features import tamed
from btray.core.strange import Detector, drift, fit_detector


def known(rows, seed=0, width=96, rank=6):
    """Features near a subspace."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(7).gamma(1.0, 1.0, (rank, width))
    weights = rng.dirichlet(np.ones(rank), rows)
    return _tamed(weights @ basis * rng.gamma(20, 0.05, (rows, width)))


def strange(rows, seed=1, width=96):
    return _tamed(np.random.default_rng(seed).gamma(0.3, 1.0, (rows, width)))


def _tamed(values):
    return tamed(torch.from_numpy(values.astype(np.float32))).numpy()


def test_strange_features_score_higher_and_fresh_known_ones_seldom_cross_the_threshold():
    detector = fit_detector(known(600))
    fresh, others = detector.score(known(2000, seed=5)), detector.score(strange(200))
    assert fresh.max() < others.min()
    assert 0.001 <= (fresh > detector.threshold).mean() <= 0.03
    assert (others > detector.threshold).all()


def test_the_score_is_the_mahalanobis_distance_of_the_fitted_gaussian():
    detector = fit_detector(known(300))
    features = known(20, seed=3).astype(np.float64)
    width = features.shape[1]
    along = detector.components
    covariance = detector.noise * (np.eye(width) - along.T @ along)
    covariance += (along.T * detector.variances) @ along
    offsets = features - detector.centre
    expected = np.einsum("ij,jk,ik->i", offsets, np.linalg.inv(covariance), offsets)
    np.testing.assert_allclose(detector.score(features), expected, rtol=0.02)


def test_a_detector_comes_back_as_it_was_and_is_small():
    detector = fit_detector(known(900, width=1280))
    tensors = detector.tensors()
    assert sum(values.nbytes for values in tensors.values()) < 300_000
    again = Detector.from_tensors(tensors)
    features = known(50, seed=2, width=1280)
    np.testing.assert_array_equal(again.score(features), detector.score(features))
    assert again.threshold == detector.threshold
    np.testing.assert_array_equal(again.deciles, detector.deciles)


def test_a_detector_of_before_has_no_deciles():
    tensors = fit_detector(known(300)).tensors()
    del tensors["deciles"]
    again = Detector.from_tensors(tensors)
    assert again.deciles is None
    assert again.tensors().keys() == tensors.keys()


def test_tensors_of_torch_are_taken_as_arrays_are():
    detector = fit_detector(known(300))
    tensors = {name: torch.from_numpy(values) for name, values in detector.tensors().items()}
    features = known(20, seed=3)
    found = Detector.from_tensors(tensors).score(features)
    np.testing.assert_array_equal(found, detector.score(features))


def test_fresh_known_images_fill_the_shares_between_the_deciles_alike():
    detector = fit_detector(known(1500))
    bins = np.searchsorted(detector.deciles, detector.score(known(3000, seed=5)))
    shares = np.bincount(bins, minlength=10) / 3000
    assert shares == pytest.approx(0.1, abs=0.03)


def test_drift_is_small_for_known_images_and_large_for_others():
    detector = fit_detector(known(1500))
    assert drift(detector.score(known(1000, seed=5)), detector.deciles) < 0.1
    mixed = np.concatenate([known(700, seed=5), strange(300)])
    assert drift(detector.score(mixed), detector.deciles) > 0.25


def test_drift_is_the_population_stability_index():
    deciles = np.arange(1, 10)
    assert drift(np.repeat(np.arange(10) + 0.5, 7), deciles) == pytest.approx(0)
    counts = np.array([5, 5, 10, 10, 10, 10, 10, 10, 10, 20]) + 0.5
    scores = np.repeat(np.arange(10) + 0.5, (counts - 0.5).astype(int))
    shares = counts / 105
    expected = sum((p - 0.1) * np.log(p / 0.1) for p in shares)
    assert drift(scores.tolist(), tuple(deciles)) == pytest.approx(expected)


def test_drift_of_scores_all_in_one_share_is_finite():
    assert 0.25 < drift([99.0] * 500, np.arange(1, 10)) < 10


@pytest.mark.parametrize(("scores", "deciles"), [([], np.arange(9)), ([1.0], np.arange(8))])
def test_drift_needs_scores_and_nine_deciles(scores, deciles):
    with pytest.raises(ValueError, match="deciles"):
        drift(scores, deciles)


def test_groups_are_held_out_whole():
    # Copies of one image say nothing of a fresh one: with rows alone the threshold is too low.
    few = known(60)
    copies, groups = np.repeat(few, 10, axis=0), np.repeat(np.arange(60), 10)
    rng = np.random.default_rng(0)
    copies = copies * rng.normal(1, 0.01, copies.shape).astype(np.float32)
    assert fit_detector(copies, groups).threshold > 1.2 * fit_detector(copies).threshold


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_too_few_rows_make_no_detector(rows):
    assert fit_detector(known(rows)) is None


def test_features_all_alike_or_of_one_group_make_none():
    assert fit_detector(np.ones((50, 8), dtype=np.float32)) is None
    assert fit_detector(known(50), np.zeros(50, dtype=np.int64)) is None


def test_few_rows_make_a_smaller_one():
    detector = fit_detector(known(50))
    assert len(detector.variances) == 12
    assert np.isfinite(detector.score(strange(5))).all()


@pytest.mark.parametrize(
    "change",
    [
        {"noise": torch.tensor(-1.0)},
        {"variances": torch.ones(3)},
        {"centre": torch.full((96,), torch.nan)},
        {"more": torch.ones(1)},
        {"deciles": np.arange(8.0)},
        {"deciles": np.arange(9.0, 0, -1)},
    ],
)
def test_damage_is_told(change):
    tensors = fit_detector(known(300)).tensors()
    with pytest.raises(ValueError, match="detector"):
        Detector.from_tensors(tensors | change)
