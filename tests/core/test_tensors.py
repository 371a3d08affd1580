import numpy as np
import torch

from btray.config import ImageConfig
from btray.core.tensors import normalise, to_unit


def test_bytes_become_floats_from_0_to_1_with_one_channel():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    unit = to_unit(images)
    assert (unit.shape, unit.dtype) == ((1, 1, 16, 16), torch.float32)
    torch.testing.assert_close(unit.flatten(), torch.linspace(0, 1, 256))
    assert (unit.min(), unit.max()) == (0, 1)


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8)


def test_to_unit_leaves_the_bytes_alone():
    images = torch.full((2, 8, 8), 200, dtype=torch.uint8)
    to_unit(images)
    assert (images == 200).all()


def test_normalise_subtracts_the_mean_and_divides():
    config = ImageConfig(mean=0.25, std=0.5)
    images = normalise(torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3), config)
    assert images.flatten().tolist() == [-0.5, 0.0, 1.5]


def test_normalise_works_in_place():
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert normalise(images, ImageConfig()).data_ptr() == images.data_ptr()


def test_a_row_does_not_depend_on_the_rest_of_its_batch():
    images = torch.from_numpy(np.stack([noise(seed) for seed in range(5)]))
    batch = normalise(to_unit(images), ImageConfig())
    alone = torch.cat([normalise(to_unit(image[None]), ImageConfig()) for image in images])
    assert torch.equal(batch, alone)


def test_zscore_gives_every_image_mean_0_and_deviation_1():
    images = to_unit(torch.from_numpy(np.stack([noise(seed) // (seed + 1) for seed in range(3)])))
    scaled = normalise(images, ImageConfig(scaling="zscore"))
    torch.testing.assert_close(scaled.mean((1, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.std((1, 2, 3), correction=0), torch.ones(3))


def test_zscore_of_a_blank_image_is_0():
    images = to_unit(torch.full((1, 8, 8), 90, dtype=torch.uint8))
    assert normalise(images, ImageConfig(scaling="zscore")).abs().max() < 1e-4
