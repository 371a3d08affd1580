import itertools
import math

import pytest
import torch

from btray.config import AugmentConfig
from btray.core.augment import augment, batch_generator

SIDE = 64
NOTHING = {
    "rotation": 0,
    "translation": 0,
    "scale": 0,
    "shear": 0,
    "flip": 0,
    "brightness": 0,
    "contrast": 0,
    "gamma": 0,
    "noise": 0,
}


def only(**ranges):
    return AugmentConfig(**(NOTHING | ranges))


def changed(images, config, seed=0):
    return augment(images.clone(), config, batch_generator(seed, 0, 0, 0))


def random_images(count=8, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, SIDE, SIDE, generator=generator) * (high - low) + low


def dot(count, right, down):
    """A soft bright dot, `right` and `down` pixels off the centre, [count, 1, SIDE, SIDE]."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    distance = (axis[None, :] - right) ** 2 + (axis[:, None] - down) ** 2
    return torch.exp(-distance / 8).expand(count, 1, SIDE, SIDE)


def where(images):
    """Return how far right and down of the centre the brightness lies, each [count], pixels."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    total = images.sum(dim=(1, 2, 3))
    right = (images.sum(dim=2) * axis).sum(dim=(1, 2)) / total
    down = (images.sum(dim=3) * axis).sum(dim=(1, 2)) / total
    return right, down


# Reproducible


def test_the_same_seed_epoch_rank_and_step_give_the_same_batch():
    images = random_images()
    first, second = (
        augment(images, AugmentConfig(), batch_generator(1, 2, 3, 4)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_every_seed_epoch_rank_and_step_has_a_stream_of_its_own():
    places = list(itertools.product(range(3), range(4), range(4), range(20)))
    draws = {torch.rand(2, generator=batch_generator(*place)).numpy().tobytes() for place in places}
    assert len(draws) == len(places)


def test_streams_of_neighbours_are_not_correlated():
    draws = torch.stack(
        [torch.rand(1000, generator=batch_generator(0, 0, rank, 0)) for rank in range(8)]
    )
    assert (torch.corrcoef(draws) - torch.eye(8)).abs().max() < 0.15


def test_the_global_generator_is_neither_read_nor_moved():
    images = random_images(2)
    state = torch.get_rng_state()
    changed(images, AugmentConfig())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_is_augmented_alike_on_a_gpu():
    images = random_images()
    on_gpu = augment(images.cuda(), AugmentConfig(), batch_generator(0, 0, 0, 0)).cpu()
    torch.testing.assert_close(on_gpu, changed(images, AugmentConfig()), atol=1e-3, rtol=0)


def test_the_images_of_a_batch_are_changed_differently():
    images = random_images(1).expand(16, 1, SIDE, SIDE)
    assert len({image.numpy().tobytes() for image in changed(images, AugmentConfig())}) == 16


# Range and shape


def test_turned_off_gives_the_images_as_they_are():
    images = random_images()
    assert torch.equal(changed(images, AugmentConfig(enabled=False)), images)


def test_ranges_of_nothing_change_nothing():
    images = random_images()
    torch.testing.assert_close(changed(images, only()), images, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config",
    [AugmentConfig(), only(brightness=1, contrast=0.9, gamma=0.9, noise=1)],
    ids=["default", "wild"],
)
def test_intensities_stay_between_0_and_1(config):
    images = changed(random_images(64), config)
    assert torch.isfinite(images).all()
    assert (images.min() >= 0) & (images.max() <= 1)


@pytest.mark.parametrize("count", [1, 3])
def test_shape_and_type_are_kept(count):
    images = changed(random_images(count), AugmentConfig())
    assert (images.shape, images.dtype) == ((count, 1, SIDE, SIDE), torch.float32)


def test_the_given_images_are_left_alone():
    images = random_images()
    copy = images.clone()
    augment(images, AugmentConfig(), batch_generator(0, 0, 0, 0))
    assert torch.equal(images, copy)


def test_black_stays_black_without_noise():
    black = torch.zeros(8, 1, SIDE, SIDE)
    assert changed(black, AugmentConfig(noise=0)).max() < 1e-3


# Geometry


def test_a_certain_flip_mirrors_left_and_right():
    images = random_images()
    torch.testing.assert_close(changed(images, only(flip=1)), images.flip(-1), atol=1e-4, rtol=0)


def test_a_flip_comes_as_often_as_its_probability_says():
    right, down = where(changed(dot(400, right=10, down=5), only(flip=0.25)))
    assert (right.abs() - 10).abs().max() < 0.1
    assert (down - 5).abs().max() < 0.1
    assert 0.18 < (right < 0).float().mean() < 0.32


def test_rotation_turns_by_at_most_its_degrees():
    right, down = where(changed(dot(200, right=16, down=0), only(rotation=30)))
    angles = torch.rad2deg(torch.atan2(down, right))
    assert 28 < angles.max() < 30.5
    assert -30.5 < angles.min() < -28


def test_rotation_keeps_the_distance_from_the_centre():
    right, down = where(changed(dot(100, right=12, down=9), only(rotation=180)))
    torch.testing.assert_close(torch.hypot(right, down), torch.full((100,), 15.0), atol=0.2, rtol=0)


def test_translation_moves_by_at_most_its_fraction_of_the_side():
    moves = torch.stack(where(changed(dot(200, 0, 0), only(translation=0.25))))
    limit = 0.25 * SIDE
    assert moves.abs().max() < limit + 0.1
    assert (moves.max(dim=1).values > 0.9 * limit).all()
    assert (moves.min(dim=1).values < -0.9 * limit).all()


def test_translation_along_the_two_axes_is_independent():
    moves = torch.stack(where(changed(dot(400, 0, 0), only(translation=0.2))))
    assert torch.corrcoef(moves)[0, 1].abs() < 0.15


def test_scale_changes_size_by_at_most_its_fraction():
    right, down = where(changed(dot(200, right=12, down=8), only(scale=0.3)))
    torch.testing.assert_close(right / 12, down / 8, atol=0.02, rtol=0)
    assert 1.25 < (right / 12).max() < 1.32
    assert 0.68 < (right / 12).min() < 0.75


def test_shear_leans_by_at_most_its_degrees():
    right, down = where(changed(dot(200, right=0, down=16), only(shear=20)))
    lean = torch.rad2deg(torch.atan2(right, down))
    assert 18 < lean.max() < 20.5
    assert -20.5 < lean.min() < -18


def test_shear_leaves_the_other_axis_alone():
    right, down = where(changed(dot(100, right=16, down=0), only(shear=20)))
    torch.testing.assert_close(right, torch.full((100,), 16.0), atol=0.1, rtol=0)
    assert down.abs().max() < 0.1


def test_what_comes_in_from_outside_is_black():
    white = torch.ones(50, 1, SIDE, SIDE)
    images = changed(white, only(translation=0.5))
    assert images.amin(dim=(1, 2, 3)).max() == 0


# Intensity


def test_brightness_scales_an_image_by_at_most_its_fraction():
    images = random_images(200, high=0.5)
    ratio = changed(images, only(brightness=0.4)).sum(dim=(1, 2, 3)) / images.sum(dim=(1, 2, 3))
    assert 1.35 < ratio.max() < 1.41
    assert 0.59 < ratio.min() < 0.65


def test_contrast_scales_around_the_mean():
    images = random_images(200, low=0.35, high=0.65)
    after = changed(images, only(contrast=0.5))
    torch.testing.assert_close(
        after.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)), atol=1e-4, rtol=0
    )
    ratio = after.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    assert 1.45 < ratio.max() < 1.51
    assert 0.49 < ratio.min() < 0.55


def test_gamma_is_an_exponent():
    images = torch.full((200, 1, SIDE, SIDE), 0.25)
    after = changed(images, only(gamma=0.5))[:, 0, SIDE // 2, SIDE // 2]
    exponents = after.log() / math.log(0.25)
    assert 1.45 < exponents.max() < 1.51
    assert 0.49 < exponents.min() < 0.55


def test_noise_has_at_most_its_standard_deviation_and_no_shift():
    images = torch.full((200, 1, SIDE, SIDE), 0.5)
    after = changed(images, only(noise=0.1))[:, :, 4:-4, 4:-4]
    strength = after.std(dim=(1, 2, 3))
    assert 0.09 < strength.max() < 0.105
    assert strength.min() < 0.01
    assert (after.mean(dim=(1, 2, 3)) - 0.5).abs().max() < 0.01
