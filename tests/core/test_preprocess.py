import numpy as np
import pytest
import torch

from btray.config import ImageConfig
from btray.core.preprocess import to_square


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
