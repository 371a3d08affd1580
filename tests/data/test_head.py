import numpy as np
import pytest
from PIL import Image

from btray.core.head import head_box
from btray.data.head import THUMBNAIL, thumbnail


def edges(pixels):
    rows, columns = head_box(pixels)
    return np.array([rows.start, rows.stop, columns.start, columns.stop])


def head(background=0, size=100):
    """A textured ellipse between rows 20 and 80, columns 30 and 70."""
    down, across = np.mgrid[:size, :size]
    inside = ((down - 49.5) / 30) ** 2 + ((across - 49.5) / 20) ** 2 < 1
    texture = np.random.default_rng(0).integers(100, 220, (size, size))
    return np.where(inside, texture, background).astype(np.uint8)


@pytest.mark.parametrize("background", [0, 40, 255])
def test_the_box_is_the_heads_whatever_the_background(background):
    assert np.abs(edges(head(background)) - (20, 80, 30, 70)).max() <= 2


def test_a_border_around_a_grey_background_is_cut_too():
    framed = np.pad(head(40), ((30, 10), (5, 50)))
    assert np.abs(edges(framed) - (50, 110, 35, 75)).max() <= 3


def test_a_flat_image_is_its_own_box_and_has_an_empty_thumbnail():
    flat = np.full((40, 60), 90, np.uint8)
    assert edges(flat).tolist() == [0, 40, 0, 60]
    assert not thumbnail(flat).any()


def test_the_smallest_images_have_a_thumbnail():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    assert thumbnail(pixels).shape == (THUMBNAIL, THUMBNAIL)


def test_gamma_and_contrast_do_not_change_the_thumbnail():
    pixels = head()
    darker = np.round(255 * (pixels / 255) ** 1.3 * 0.8).astype(np.uint8)
    difference = thumbnail(pixels).astype(int) - thumbnail(darker)
    assert np.abs(difference).mean() < 4


def test_the_thumbnail_is_of_the_head_alone():
    large = np.asarray(Image.fromarray(np.pad(head(), 40)))
    difference = thumbnail(head()).astype(int) - thumbnail(large)
    assert np.abs(difference).mean() < 8
