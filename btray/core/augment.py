"""Random changes of whole batches, in torch, on the batch's own device.

Every draw comes from one CPU generator seeded by (seed, epoch, rank, step), so a batch is
augmented alike wherever and whenever it is made again.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from btray.config import AugmentConfig


def batch_generator(seed: int, epoch: int, rank: int, step: int) -> torch.Generator:
    """Return the generator of one batch; distinct arguments give independent streams."""
    state = np.random.SeedSequence([seed, epoch, rank, step]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return changed copies of float32 images [batch, 1, height, width] in 0..1."""
    if not config.enabled:
        return images
    images = _warp(images, _affine(len(images), config, generator).to(images.device))
    return _change_intensity(images, config, generator)


def _uniform(count: int, extent: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=generator) * 2 - 1) * extent


def _affine(count: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw inverse affine maps [count, 2, 3] in normalised coordinates (-1..1)."""
    angle = _uniform(count, math.radians(config.rotation), generator)
    shear = torch.tan(_uniform(count, math.radians(config.shear), generator))
    scale = 1 + _uniform(count, config.scale, generator)
    mirror = torch.where(torch.rand(count, generator=generator) < config.flip, -1.0, 1.0)
    shift = _uniform(count * 2, 2 * config.translation, generator).view(count, 2)
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [
        torch.stack([mirror * cosine, mirror * (shear * cosine - sine), shift[:, 0]], dim=1),
        torch.stack([sine, shear * sine + cosine, shift[:, 1]], dim=1),
    ]
    return torch.stack(rows, dim=1)


def _warp(images: Tensor, maps: Tensor) -> Tensor:
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _change_intensity(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    count, device = len(images), images.device

    def draw(extent: float) -> Tensor:
        return _uniform(count, extent, generator).view(-1, 1, 1, 1).to(device)

    gamma, contrast, brightness = (
        1 + draw(config.gamma),
        1 + draw(config.contrast),
        1 + draw(config.brightness),
    )
    if config.gamma:
        images = images.clamp_(min=1e-6).pow_(gamma)
    centre = images.mean(dim=(1, 2, 3), keepdim=True)
    # Contrast around the mean, then brightness as a factor, so that black stays about black.
    images = torch.addcmul(centre * (1 - contrast) * brightness, images, contrast * brightness)
    if config.noise:
        strength = draw(config.noise).abs()
        noise = torch.empty_like(images, device="cpu").normal_(generator=generator).to(device)
        images = images.addcmul_(noise, strength)
    return images.clamp_(0, 1)
