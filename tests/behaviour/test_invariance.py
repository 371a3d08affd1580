"""What does not change the tumour should not change the answer."""

import numpy as np
import pytest
from scipy import ndimage

EACH = 10
"""Slices of each class."""
UNCHANGED = 0.9
"""Least share of answers that stay."""
UNCHANGED_DRAWINGS = 0.8
"""The same for phantoms, which the network was not trained on: many answers are close."""


def turned(degrees):
    return lambda image: ndimage.rotate(image, degrees, reshape=False, order=1, mode="nearest")


def brightened(factor):
    return lambda image: np.rint(np.clip(image * factor, 0, 255)).astype(np.uint8)


def mirrored(image):
    return image[:, ::-1]


CHANGES = {
    "turned left": turned(5),
    "turned right": turned(-5),
    "brighter": brightened(1.1),
    "darker": brightened(0.9),
    "mirrored": mirrored,
    "with a thin border": lambda image: np.pad(image, 1),
}


def share_unchanged(before, after):
    pairs = zip(before, after, strict=True)
    return np.mean([one.class_name == other.class_name for one, other in pairs])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_answers_for_real_slices_stay(slices, answers, answer, change):
    images = [change(image) for own in slices.values() for image in own[:EACH]]
    before = [one for own in answers.values() for one in own[:EACH]]
    assert share_unchanged(before, answer(images)) >= UNCHANGED


def test_answers_for_mirrored_phantoms_stay(phantoms, phantom_answers, answer):
    after = answer([mirrored(one.image) for one in phantoms])
    assert share_unchanged(phantom_answers, after) >= UNCHANGED


def test_answers_for_phantoms_with_a_thin_border_stay(phantoms, phantom_answers, answer):
    after = answer([np.pad(one.image, 1) for one in phantoms])
    assert share_unchanged(phantom_answers, after) >= UNCHANGED_DRAWINGS
