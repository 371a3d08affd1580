import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from btray.core.corruptions import CORRUPTIONS, SEVERITIES, change_gamma, corrupt, jpeg
from btray.errors import UserError

MONOTONE = sorted(set(CORRUPTIONS) - {"rotation"})


def head(height=192, width=160, seed=0):
    """A bright ellipse with texture in it, on black."""
    rows, columns = np.indices((height, width)) - np.array([[[height]], [[width]]]) / 2
    inside = (rows / (0.42 * height)) ** 2 + (columns / (0.4 * width)) ** 2 < 1
    texture = np.random.default_rng(seed).integers(60, 200, (height // 4, width // 4))
    texture = np.kron(texture, np.ones((4, 4)))
    return np.where(inside, texture, 0).astype(np.uint8)


def distance(first, second):
    return np.sqrt(np.mean((first.astype(float) - second) ** 2))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_slice_comes_back_changed_in_its_own_shape(name, severity):
    image = head()
    before = image.copy()
    changed = corrupt(image, name, severity)
    assert changed.dtype == np.uint8
    assert changed.shape == image.shape
    assert (changed != image).any()
    assert (image == before).all()


@pytest.mark.parametrize("name", MONOTONE)
def test_each_severity_changes_more_than_the_one_before(name):
    image = head()
    errors = [distance(corrupt(image, name, severity), image) for severity in SEVERITIES]
    assert errors == sorted(set(errors))


@settings(max_examples=50)
@given(
    name=st.sampled_from(sorted(CORRUPTIONS)),
    severity=st.sampled_from(SEVERITIES),
    height=st.integers(16, 70),
    width=st.integers(16, 70),
    grey=st.integers(0, 255),
)
def test_slices_of_any_size_even_blank_ones_can_be_corrupted(name, severity, height, width, grey):
    changed = corrupt(np.full((height, width), grey, dtype=np.uint8), name, severity)
    assert changed.shape == (height, width)
    assert changed.dtype == np.uint8


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_answer_does_not_depend_on_what_was_corrupted_before(name):
    images = [head(seed=seed) for seed in range(3)]
    forwards = [corrupt(image, name, 3) for image in images]
    backwards = [corrupt(np.asfortranarray(image), name, 3) for image in images[::-1]]
    for first, second in zip(forwards, backwards[::-1], strict=True):
        assert (first == second).all()


@pytest.mark.parametrize("name", ["noise", "motion", "bias_field"])
def test_another_seed_draws_another_corruption(name):
    image = head()
    assert (corrupt(image, name, 3, seed=1) != corrupt(image, name, 3, seed=2)).any()


def test_every_slice_has_noise_of_its_own():
    noises = [corrupt(head(seed=seed), "noise", 1)[:8, :8] for seed in range(2)]
    assert (noises[0] != noises[1]).any()


@pytest.mark.parametrize("name", ["contrast", "rotation"])
def test_both_directions_are_drawn(name):
    image = head()
    tried = [corrupt(image, name, 5, seed) for seed in range(12)]
    assert len({changed.tobytes() for changed in tried}) == 2


def test_unknown_names_and_severities_are_refused():
    with pytest.raises(UserError, match="no corruption 'fog'; there are noise, motion"):
        corrupt(head(), "fog", 1)
    for severity in (0, 6):
        with pytest.raises(UserError, match="blur: no severity"):
            corrupt(head(), "blur", severity)


# Each in its own way


def test_noise_is_rician():
    # A percent of bright pixels sets the scale, the rest is background without signal.
    image = np.zeros((200, 200), dtype=np.uint8)
    image[:8] = 200
    noisy = corrupt(image, "noise", 4).astype(float)
    deviation = 0.09 * 200
    # Without signal a Rician variable is a Rayleigh one; with a strong one it is a Gaussian.
    assert noisy[8:].mean() == pytest.approx(deviation * np.sqrt(np.pi / 2), rel=0.02)
    assert noisy[8:].std() == pytest.approx(deviation * np.sqrt(2 - np.pi / 2), rel=0.03)
    assert np.median(noisy[:8]) == pytest.approx(200, rel=0.02)


def test_motion_changes_phases_along_one_axis_only():
    image = np.zeros((64, 64), dtype=np.uint8)
    image[30:34, 30:34] = 200
    moved = corrupt(image, "motion", 5)
    spread = [(moved > 0).any(axis=axis).sum() for axis in (0, 1)]
    assert min(spread) == 4
    assert max(spread) > 20


def test_a_bias_field_is_the_exponential_of_a_cubic_and_keeps_the_mean():
    image = np.full((64, 64), 100, dtype=np.uint8)
    uneven = corrupt(image, "bias_field", 1).astype(float)
    assert uneven.max() < 255
    assert uneven.mean() == pytest.approx(100, abs=1)
    logarithm = np.log(uneven).ravel()
    assert logarithm.std() == pytest.approx(0.15, rel=0.02)
    places = [place.ravel() for place in np.indices((64, 64)) / 32 - 1]
    terms = np.polynomial.polynomial.polyvander2d(*places, (3, 3))
    fitted = terms @ np.linalg.lstsq(terms, logarithm, rcond=None)[0]
    assert fitted == pytest.approx(logarithm, abs=0.02)  # but for the rounding


def test_blur_is_as_wide_at_any_size():
    image = head(64, 64)
    double = np.kron(image, np.ones((2, 2), dtype=np.uint8))
    blurred = corrupt(double, "blur", 5).reshape(64, 2, 64, 2).mean(axis=(1, 3))
    assert distance(blurred, corrupt(image, "blur", 5)) < distance(image, blurred) / 3


def test_rotation_fills_the_corners_with_the_grey_of_the_frame():
    image = np.full((64, 64), 90, dtype=np.uint8)
    image[20:44, 20:44] = 200
    turned = corrupt(image, "rotation", 5)
    assert (turned[:4, :4] == 90).all()
    assert (turned == 200).sum() == pytest.approx(24 * 24, rel=0.1)


def test_low_resolution_leaves_the_middle_of_k_space_alone():
    image = head(64, 64) // 2 + 60
    coarse = corrupt(image, "low_resolution", 2)
    before, after = (np.abs(fft.fftshift(fft.fft2(each.astype(float)))) for each in (image, coarse))
    middle = slice(24, 41)
    assert after[middle, middle] == pytest.approx(before[middle, middle], rel=0.02, abs=100)
    outer = np.ones((64, 64), dtype=bool)
    outer[15:50, 15:50] = False
    assert after[outer].mean() < before[outer].mean() / 10


def test_jpeg_of_a_lower_quality_is_further_from_the_slice():
    image = head()
    assert distance(jpeg(image, 95), image) < distance(jpeg(image, 10), image)


def test_gamma_keeps_black_and_white_and_the_order():
    grey = np.arange(256, dtype=np.uint8)[None].repeat(16, axis=0)
    for exponent in (0.5, 2.0):
        changed = change_gamma(grey, exponent)[0].astype(int)
        assert changed[[0, 255]].tolist() == [0, 255]
        assert (np.diff(changed) >= 0).all()
    assert change_gamma(grey, 0.5)[0, 64] == round(255 * np.sqrt(64 / 255))
