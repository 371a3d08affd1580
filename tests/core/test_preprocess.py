import numpy as np
import pytest
import torch

from btray.config import ImageConfig
from btray.core.preprocess import clip_percentiles, equalise, stages, to_square


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def white(height, width):
    return np.full((height, width), 255, dtype=np.uint8)


SHAPES = [(64, 64), (300, 200), (200, 300), (17, 16), (500, 33), (1, 1)]


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize("size", [32, 65, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_slice_becomes_a_square_of_bytes(shape, size, fit):
    square = to_square(noise(*shape), ImageConfig(size=size, fit=fit))
    assert (square.shape, square.dtype) == ((size, size), np.uint8)


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_a_square_of_the_right_size_is_unchanged(fit):
    image = noise(64, 64)
    np.testing.assert_array_equal(to_square(image, ImageConfig(size=64, fit=fit)), image)


def test_a_letterboxed_wide_slice_has_black_above_and_below():
    square = to_square(white(50, 100), ImageConfig(size=64))
    expected = np.zeros((64, 64), np.uint8)
    expected[16:48] = 255
    np.testing.assert_array_equal(square, expected)


def test_a_letterboxed_tall_slice_has_black_at_both_sides():
    square = to_square(white(100, 25), ImageConfig(size=64))
    expected = np.zeros((64, 64), np.uint8)
    expected[:, 24:40] = 255
    np.testing.assert_array_equal(square, expected)


def test_an_odd_rest_of_letterbox_differs_by_one_row_at_most():
    filled = to_square(white(65, 100), ImageConfig(size=100)).any(axis=1).nonzero()[0]
    above, below = filled[0], 99 - filled[-1]
    assert (above + below, abs(above - below)) == (35, 1)


@pytest.mark.parametrize(("height", "width"), [(16, 4000), (4000, 16)])
def test_a_sliver_keeps_at_least_one_line(height, width):
    square = to_square(white(height, width), ImageConfig(size=128))
    line = square if height < width else square.T
    assert line.any(axis=1).sum() == 1
    assert line.max(axis=0).min() == 255


@pytest.mark.parametrize("shape", [(50, 100), (100, 25), (16, 4000)])
def test_stretch_leaves_no_border(shape):
    assert to_square(white(*shape), ImageConfig(size=64, fit="stretch")).min() == 255


def test_the_two_fits_agree_on_squares():
    image = noise(200, 200)
    np.testing.assert_array_equal(
        to_square(image, ImageConfig(size=64, fit="letterbox")),
        to_square(image, ImageConfig(size=64, fit="stretch")),
    )


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))
    square = to_square(stripes, ImageConfig(size=32)).astype(int)
    assert np.abs(square - 127.5).max() < 8


def test_what_was_left_and_above_stays_left_and_above():
    image = np.zeros((100, 200), np.uint8)
    image[:50, :100] = 255
    square = to_square(image, ImageConfig(size=64))
    assert square[20, 10] == 255
    assert square[44, 10] == square[20, 54] == square[44, 54] == 0


def test_the_same_slice_gives_the_same_bytes_with_any_number_of_threads():
    image, config = noise(300, 211), ImageConfig(size=128)
    before = torch.get_num_threads()
    squares = []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            squares.append(to_square(image, config).tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(set(squares)) == 1


@pytest.mark.parametrize("size", [64, 32])
def test_the_given_slice_is_neither_changed_nor_shared(size):
    image = noise(64, 64)
    copy = image.copy()
    square = to_square(image, ImageConfig(size=size))
    square[:] = 0
    np.testing.assert_array_equal(image, copy)


def test_read_only_and_strided_pixels_are_taken():
    image = noise(128, 128)
    view = image[::2, ::-2]
    view.flags.writeable = False
    np.testing.assert_array_equal(to_square(view, ImageConfig(size=64)), image[::2, ::-2])


def head(height, width, top, left, tall, wide):
    """A bright ellipse with texture on a black slice."""
    rows, columns = np.ogrid[:height, :width]
    inside = ((rows - top - tall / 2) / (tall / 2)) ** 2 + (
        (columns - left - wide / 2) / (wide / 2)
    ) ** 2 <= 1
    return np.where(inside, 80 + noise(height, width) // 2, 0).astype(np.uint8)


def test_the_head_crop_does_not_depend_on_the_border():
    config = ImageConfig(size=64, crop="head", crop_margin=0)
    tight, wide = head(120, 100, 0, 0, 120, 100), np.zeros((300, 260), np.uint8)
    wide[90:210, 40:140] = tight
    squares = [to_square(image, config).ravel() for image in (tight, wide)]
    assert np.corrcoef(squares)[0, 1] > 0.97
    without = [to_square(image, ImageConfig(size=64)).ravel() for image in (tight, wide)]
    assert np.corrcoef(without)[0, 1] < 0.7


def test_the_crop_margin_is_a_share_of_the_longer_side():
    image = head(300, 300, 100, 120, 100, 80)
    (_, tight), *_ = stages(image, ImageConfig(crop="head", crop_margin=0))
    (_, loose), *_ = stages(image, ImageConfig(crop="head", crop_margin=0.1))
    grown = np.subtract(loose.shape, tight.shape)
    assert set(grown) == {2 * round(0.1 * max(tight.shape))}


@pytest.mark.parametrize("image", [white(80, 60), np.zeros((80, 60), np.uint8), noise(80, 60)])
def test_a_slice_without_a_head_is_not_cropped(image):
    (_, cropped), *_ = stages(image, ImageConfig(crop="head"))
    np.testing.assert_array_equal(cropped, image)


def test_a_bright_speck_beside_the_head_is_not_part_of_it():
    image = head(200, 200, 50, 50, 100, 100)
    (_, without), *_ = stages(image, ImageConfig(crop="head"))
    image[5:8, 5:8] = 255
    (_, cropped), *_ = stages(image, ImageConfig(crop="head"))
    np.testing.assert_array_equal(cropped, without)


def test_percentiles_are_those_of_the_foreground():
    ramp = np.concatenate([np.zeros(900, np.uint8), np.arange(51, 151, dtype=np.uint8)])
    clipped = clip_percentiles(ramp.reshape(10, 100), 1, 99).ravel()
    assert (clipped[:900] == 0).all()
    assert (clipped[900:902] == 0).all()
    assert (clipped[-2:] == 255).all()
    assert (np.diff(clipped[900:].astype(int)) >= 0).all()


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_flat_slice_is_not_stretched(value):
    flat = np.full((20, 20), value, np.uint8)
    np.testing.assert_array_equal(clip_percentiles(flat, 1, 99), flat)


def test_a_clipped_slice_forgets_brightness_and_contrast():
    image = head(128, 128, 14, 14, 100, 100)
    darker = (image * 0.5).astype(np.uint8)
    config = ImageConfig(size=64, clip_percentiles=(1, 99))
    difference = to_square(image, config).astype(int) - to_square(darker, config)
    assert np.abs(difference).mean() < 3


def test_equalisation_raises_local_contrast():
    faint = 100 + noise(128, 128) // 16
    assert equalise(faint.astype(np.uint8), 0.5).std() > 2 * faint.std()


def test_stages_come_in_order_and_end_with_the_square():
    config = ImageConfig(size=64, crop="head", clip_percentiles=(1, 99), clahe=0.01, fit="stretch")
    image = head(128, 100, 10, 10, 100, 80)
    named = list(stages(image, config))
    assert [name for name, _ in named] == ["head crop", "percentile clip", "CLAHE", "stretch"]
    np.testing.assert_array_equal(named[-1][1], to_square(image, config))


def test_without_options_resizing_is_the_only_stage():
    assert [name for name, _ in stages(noise(50, 40), ImageConfig())] == ["letterbox"]
