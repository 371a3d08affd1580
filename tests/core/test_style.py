import numpy as np
import pytest
import torch
from skimage.exposure import match_histograms as theirs

from btray.config import AugmentConfig
from btray.core.augment import augment, batch_generator
from btray.core.style import change_style, match_histograms

NOTHING = {
    name: 0
    for name in AugmentConfig.model_fields
    if name not in ("enabled", "histogram", "border", "resolution")
}


def slices(count=6, side=48, seed=0):
    """Bright discs of grains on a dark ground with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, side)
    disc = (axis[None] ** 2 + axis[:, None] ** 2 < 0.6).float()
    grains = torch.rand(count, 1, side, side, generator=generator)
    strength = torch.linspace(0.3, 0.9, count).view(-1, 1, 1, 1)
    return disc * (0.1 + strength * grains) + (1 - disc) * 0.03 * grains


def test_whole_histograms_are_matched_as_scikit_image_does():
    images, references = slices(seed=1), slices(seed=2).flip(0)
    whole = torch.ones(len(images), dtype=torch.bool)
    found = match_histograms(images, references, whole).numpy()
    levels = [(some.numpy() * 255).round() for some in (images, references)]
    for mine, image, reference in zip(found, *levels, strict=True):
        expected = theirs(image[0], reference[0]) / 255
        # A level here, a value between two levels there.
        assert np.abs(mine[0] - expected).mean() < 2 / 255


def test_the_background_can_be_left_alone():
    images, references = slices(seed=1), slices(seed=2).flip(0)
    found = match_histograms(images, references, torch.zeros(len(images), dtype=torch.bool))
    dark = (images * 255).round() < 13
    assert dark.any()
    assert torch.equal(found[dark], (images[dark] * 255).round() / 255)
    for mine, reference in zip(found, references, strict=True):
        lit = reference[(reference * 255).round() >= 13].mean()
        assert mine[(mine * 255).round() >= 13].mean() == pytest.approx(float(lit), abs=0.02)


def test_what_is_dark_is_set_to_black_and_what_is_bright_is_not():
    images = slices()
    found = change_style(images.clone(), AugmentConfig(border=1), batch_generator(0, 0, 0, 0))
    changed = found != images
    assert changed.any()
    assert not found[changed].any()
    assert images[changed].max() < images.mean()


def test_resolution_takes_detail_from_about_half_of_the_images():
    images = slices(40)
    found = change_style(images.clone(), AugmentConfig(resolution=2), batch_generator(0, 0, 0, 1))

    def detail(some):
        return (some[..., 1:] - some[..., :-1]).abs().mean(dim=(1, 2, 3))

    less = detail(found) < 0.8 * detail(images)
    assert 8 <= int(less.sum()) <= 32
    assert torch.equal(found[~less], images[~less])


def test_images_keep_their_range_and_the_same_draws_give_the_same():
    config = AugmentConfig(**NOTHING, histogram=0.5, border=0.5, resolution=1)
    images = slices(16)
    first, second = (augment(images.clone(), config, batch_generator(3, 1, 0, 2)) for _ in "12")
    assert torch.equal(first, second)
    assert first.shape == images.shape
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    assert not torch.equal(first, images)


def test_without_them_the_other_draws_are_as_before():
    config, images = AugmentConfig(), slices()
    plain = augment(images.clone(), config, batch_generator(0, 0, 0, 0))
    again = config.model_copy(update={"histogram": 0.0, "border": 0.0, "resolution": 0.0})
    assert torch.equal(plain, augment(images.clone(), again, batch_generator(0, 0, 0, 0)))
