"""Random changes of what tells one archive from another: grey values, background, resolution.

A network that has seen every class in every archive's style cannot tell the class by the style
(domain randomisation; histogram matching across images as in Ma 2021, 'Histogram matching
augmentation for domain adaptation').
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from btray.config import AugmentConfig

_LEVELS: Final = 256
_BACKGROUND: Final = 0.05
"""Grey values below are background to those matches that leave it alone."""
_DARKEST: Final = 0.4
"""Largest local mean that is blacked out, as a share of the image's own mean."""


def change_style(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return float32 images [batch, 1, height, width] in 0..1 in other styles, each by chance."""

    def chosen(probability: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) < probability).nonzero()[:, 0]

    if config.histogram:
        rows = chosen(config.histogram)
        others = torch.randint(len(images), (len(rows),), generator=generator)
        whole = torch.rand(len(rows), generator=generator) < 0.5
        if len(rows):
            matched = match_histograms(images[rows], images[others], whole.to(images.device))
            images = images.index_copy(0, rows.to(images.device), matched)
    if config.border:
        rows = chosen(config.border)
        share = torch.rand(len(rows), generator=generator) * _DARKEST
        if len(rows):
            blacked = _black_out(images[rows], share.to(images.device))
            images = images.index_copy(0, rows.to(images.device), blacked)
    if config.resolution:
        rows = chosen(0.5)
        factor = 1 + config.resolution * float(torch.rand(1, generator=generator))
        if len(rows):
            coarse = _coarsen(images[rows], factor)
            images = images.index_copy(0, rows.to(images.device), coarse)
    return images


def match_histograms(images: Tensor, references: Tensor, whole: Tensor) -> Tensor:
    """Return images whose grey values are distributed as those of their references.

    Args:
        images: [batch, 1, height, width], float32 in 0..1; told apart in 256 levels.
        references: As many, of any size.
        whole: bool [batch]: True counts all pixels; False leaves the dark background as it is
            and counts the others.

    """
    count = len(images)
    levels, background = _levels(images), round(_BACKGROUND * _LEVELS)
    mine, theirs = _counts(levels), _counts(_levels(references))
    kept = whole[:, None] | (torch.arange(_LEVELS, device=images.device) >= background)
    mine, theirs = (_cumulated(counts * kept) for counts in (mine, theirs))
    table = torch.searchsorted(theirs, mine).clamp_(max=_LEVELS - 1).to(images.dtype)
    table = torch.where(kept, table, torch.arange(_LEVELS, device=images.device)) / (_LEVELS - 1)
    return table.gather(1, levels.view(count, -1)).view_as(images)


def _levels(images: Tensor) -> Tensor:
    return (images * (_LEVELS - 1)).round().long()


def _counts(levels: Tensor) -> Tensor:
    """Count every level of every image: float32 [batch, levels]."""
    flat = levels.view(len(levels), -1)
    counts = torch.zeros(len(flat), _LEVELS, device=flat.device)
    return counts.scatter_add_(1, flat, torch.ones((), device=flat.device).expand_as(flat))


def _cumulated(counts: Tensor) -> Tensor:
    sums = counts.cumsum(1)
    return (sums / sums[:, -1:].clamp_min(1)).contiguous()


def _black_out(images: Tensor, share: Tensor) -> Tensor:
    """Set to 0 what lies where the local mean is below a share [batch] of the image's."""
    local = functional.avg_pool2d(images, 5, stride=1, padding=2)
    return images * (local >= share.view(-1, 1, 1, 1) * images.mean(dim=(1, 2, 3), keepdim=True))


def _coarsen(images: Tensor, factor: float) -> Tensor:
    """Take away details: down by a factor and up again."""
    height, width = images.shape[2:]
    size = (max(8, round(height / factor)), max(8, round(width / factor)))
    small = functional.interpolate(images, size, mode="bilinear", antialias=True)
    return functional.interpolate(small, (height, width), mode="bilinear")
