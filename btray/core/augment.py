"""Random changes of whole batches, in torch, on the batch's own device.

Every draw comes from one CPU generator seeded by (seed, epoch, rank, step), so a batch is
augmented alike wherever and whenever it is made again.
"""

import math
from functools import cache
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from btray.config import AugmentConfig
from btray.core.style import change_style

_TAPE: Final = 2**22
"""Values of noise, drawn once a process: four times the pixels of the largest image."""


def batch_generator(seed: int, epoch: int, rank: int, step: int) -> torch.Generator:
    """Return the generator of one batch; distinct arguments give independent streams."""
    state = np.random.SeedSequence([seed, epoch, rank, step]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return changed copies of float32 images [batch, 1, height, width] in 0..1."""
    if not config.enabled:
        return images
    images = change_style(images, config, generator)
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
    return functional.grid_sample(images, _grid(maps, *images.shape[2:]), align_corners=False)


def _grid(maps: Tensor, height: int, width: int) -> Tensor:
    """Apply maps [count, 2, 3] to every pixel: [count, height, width, 2].

    As `affine_grid` in a fifth of its time: with points as complex numbers an affine map is
    one sum of what comes from the column and what comes from the row.
    """
    right, down = (
        (torch.arange(side, device=maps.device) * 2 + 1) / side - 1 for side in (width, height)
    )
    across, along, shift = torch.view_as_complex(maps.transpose(1, 2).contiguous()).unbind(1)
    columns = across[:, None] * right
    rows = along[:, None] * down + shift[:, None]
    return torch.view_as_real(columns[:, None, :] + rows[:, :, None])


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
        # As `pow`, which takes three times as long.
        images = images.clamp_(min=1e-6).log_().mul_(gamma).exp_()
    centre = images.mean(dim=(1, 2, 3), keepdim=True)
    # Contrast around the mean, then brightness as a factor, so that black stays about black.
    images = torch.addcmul(centre * (1 - contrast) * brightness, images, contrast * brightness)
    if config.noise:
        strength = draw(config.noise).abs()
        images = images.addcmul_(_noise(images, generator), strength)
    return images.clamp_(0, 1)


def _noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal noise like the images: for each a random piece of a long tape.

    To draw every value anew takes a sixth of the augmentation.
    """
    tape, size = _tape(images.device), images[0].numel()
    starts = torch.randint(_TAPE - size, (len(images),), generator=generator).tolist()
    return torch.stack([tape[start : start + size] for start in starts]).view_as(images)


@cache
def _tape(device: torch.device) -> Tensor:
    return torch.randn(_TAPE, generator=torch.Generator().manual_seed(0)).to(device)
