"""A tumour that is put in makes the bundle suspect one, and taken out it calms it."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from btray.core.head import foreground, head_box
from btray.core.labels import CLASS_NAMES
from btray.data.sources.phantom import draw_style, phantom_patient


def suspicion(answers):
    """Mean probability of any tumour."""
    return np.mean([1 - one.probabilities["notumor"] for one in answers])


def resized(pixels, shape):
    return np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BILINEAR))


def brightest(image):
    return max(1.0, np.percentile(image[foreground(image)], 98))


def implanted(image, phantom):
    """A slice with a phantom's tumour where it lies in the phantom's head, and its mask."""
    target, source = head_box(image), head_box(phantom.image)
    shape = image[target].shape
    mask = resized(phantom.tumour[source].astype(np.uint8) * 255, shape) / 255
    gain = brightest(image) / brightest(phantom.image)
    tumour = np.clip(resized(phantom.image[source], shape) * gain, 0, 255)
    share = ndimage.gaussian_filter(mask, 1)
    altered, where = image.copy(), np.zeros(image.shape, bool)
    altered[target] = np.rint(image[target] * (1 - share) + tumour * share)
    where[target] = mask > 0.5
    return altered, where


@pytest.fixture(scope="module")
def implants():
    """Phantoms of gliomas and meningiomas that stand out and are cut in full."""
    axial = (
        index
        for index in range(80)
        if CLASS_NAMES[index % len(CLASS_NAMES)] in ("glioma", "meningioma")
        and draw_style(index, 0).plane == "axial"
    )
    slices = [phantom_patient(index, 0, 1)[0] for index in axial]
    return [
        one
        for one in slices
        if one.sequence == "T1ce" and one.tumour.sum() > 300 and one.image[one.tumour].min() > 0
    ]


def test_a_tumour_put_into_a_real_head_raises_suspicion_and_its_removal_lowers_it(
    slices, answers, answer, implants, without
):
    images = slices["notumor"]
    pairs = [implanted(image, implants[k % len(implants)]) for k, image in enumerate(images)]
    before = suspicion(answers["notumor"])
    during = suspicion(answer([altered for altered, _ in pairs]))
    after = suspicion(answer([without(*pair) for pair in pairs]))
    assert during > before + 0.15
    assert after < during - 0.1


def test_a_phantoms_tumour_painted_over_is_suspected_less(
    phantoms, phantom_answers, answer, without
):
    pairs = zip(phantoms, phantom_answers, strict=True)
    ill, before = zip(*(pair for pair in pairs if pair[0].tumour.any()), strict=True)
    after = answer([without(one.image, one.tumour) for one in ill])
    assert suspicion(after) < suspicion(before)
