import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.exposure import match_histograms

from btray.core.images import decode
from btray.core.unstyled import (
    REFERENCE,
    STYLES,
    border_removed,
    brain_masked,
    match_histogram,
    without_style,
)

HEAD = (slice(30, 130), slice(40, 120))
INSIDE = (slice(36, 124), slice(46, 114))
"""Surely within the head, whose corners are rounded off."""


def texture(seed=0):
    """Smooth grey values 90..220 [100, 80]."""
    noise = np.random.default_rng(seed).integers(90, 220, (10, 8)).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((80, 100), Image.Resampling.BILINEAR))


def slice_of(head, background=0):
    image = np.full((160, 160), background, dtype=np.uint8)
    image[HEAD] = head
    return image


def outside():
    """Where there is surely no head, JPEG's blocks around it left out."""
    mask = np.ones((160, 160), dtype=bool)
    mask[18:142, 28:132] = False
    return mask


def test_slices_of_one_anatomy_in_different_styles_come_out_alike():
    plain = slice_of(texture())
    styled = slice_of((texture() * 0.6 + 20).astype(np.uint8), background=25)
    buffer = io.BytesIO()
    Image.fromarray(styled).convert("RGB").save(buffer, "JPEG", quality=95)
    first, second = without_style(plain), without_style(decode(buffer.getvalue()))
    before = np.abs(plain.astype(int) - styled).mean()
    assert np.abs(first.astype(int) - second).mean() < before / 5


@settings(max_examples=30)
@given(height=st.integers(16, 300), width=st.integers(16, 300), grey=st.integers(0, 255))
def test_every_slice_comes_out_at_one_size(height, width, grey):
    image = np.full((height, width), grey, dtype=np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = 200
    square = without_style(image)
    assert square.shape == (224, 224)
    assert square.dtype == np.uint8


@pytest.mark.parametrize("background", [0, 30, 60])
def test_the_border_is_black_however_bright_it_was(background):
    square = without_style(slice_of(texture(), background))
    shrunk = np.asarray(Image.fromarray(square).resize((160, 160), Image.Resampling.BOX))
    assert shrunk[outside()].max() == 0


def test_the_head_follows_the_reference_distribution():
    square = without_style(slice_of(texture()))
    head = np.asarray(Image.fromarray(square).resize((160, 160), Image.Resampling.BOX))[HEAD]
    middle = np.quantile(head, (0.25, 0.5, 0.75))
    assert middle == pytest.approx(np.interp((0.25, 0.5, 0.75), *reference_points()), abs=4)


def reference_points():
    return np.linspace(0, 1, len(REFERENCE)), REFERENCE


def test_another_reference_can_be_given():
    bright = without_style(slice_of(texture()), np.linspace(200, 250, 5))
    assert bright[60:160, 70:150].min() > 190


def test_matching_is_that_of_scikit_image():
    image, reference = texture(0), texture(1) // 2
    whole = np.ones(image.shape, dtype=bool)
    # As many quantiles as pixels are the distribution itself.
    quantiles = np.sort(reference.ravel()).astype(float)
    ours = match_histogram(image, whole, quantiles)
    assert ours == pytest.approx(match_histograms(image, reference).astype(float), abs=1)


def test_matching_heeds_the_mask_alone():
    head, mask = texture(), np.zeros((160, 160), dtype=bool)
    mask[HEAD] = True
    results = [match_histogram(slice_of(head, grey), mask, REFERENCE)[HEAD] for grey in (0, 90)]
    assert (results[0] == results[1]).all()


def test_matching_within_an_empty_mask_does_not_fail():
    nothing = np.zeros((160, 160), dtype=bool)
    assert match_histogram(slice_of(texture()), nothing, REFERENCE).shape == (160, 160)


def test_brain_masked_leaves_only_the_background():
    masked = brain_masked(slice_of(texture(), background=20))
    assert (masked[INSIDE] == 0).all()
    assert (masked[outside()] == 20).all()


def test_border_removed_is_the_head_alone():
    for background in (0, 40):
        head = border_removed(slice_of(texture(), background))
        assert head.shape == pytest.approx((100, 80), abs=4)
        assert head[5:-5, 5:-5].min() >= 90


def test_corners_within_the_box_of_the_head_are_black():
    rows, columns = np.indices((160, 160)) - 80
    image = np.where(rows**2 + columns**2 < 50**2, 150, 30).astype(np.uint8)
    head = border_removed(image)
    assert head[:5, :5].max() == 0
    assert head[45:55, 45:55].min() == 150


@pytest.mark.parametrize("name", STYLES)
def test_a_style_changes_a_copy(name):
    image = slice_of(texture(), background=20)
    before = image.copy()
    changed = STYLES[name](image)
    assert changed.dtype == np.uint8
    assert changed.shape != image.shape or (changed != image).any()
    assert (image == before).all()


def test_styles_do_what_they_are_called():
    image = slice_of(texture(), background=20)
    assert (STYLES["inverted border"](image)[outside()] == 235).all()
    assert (STYLES["inverted border"](image)[INSIDE] == image[INSIDE]).all()
    assert STYLES["gamma bright"](image).mean() > image.mean() > STYLES["gamma dark"](image).mean()
    assert STYLES["half size"](image).shape == (80, 80)
    framed = STYLES["wide black frame"](image)
    assert framed.shape == (224, 224)
    assert (framed[32:-32, 32:-32] == image).all()
    assert framed[:32].max() == 0
    assert STYLES["histogram equalised"](image).std() > image.std()


@pytest.mark.parametrize("function", [without_style, brain_masked, border_removed])
def test_a_blank_slice_does_not_fail(function):
    assert function(np.zeros((64, 48), dtype=np.uint8)).dtype == np.uint8
