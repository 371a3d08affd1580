"""What a network sees in an image: pooled features, read in the pass that makes the logits."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from btray.core.loop import Precision, mean_of_views
from btray.core.weights import classifier_names

_POWER: Final = 0.25
"""Exponent of the features: what few channels shout must not drown what all of them say."""
_EARLIER_WEIGHT: Final = 0.4
"""Length of the earlier stage's features, to 1 of the classifier's."""


def classifier_of(network: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """Return the layer that makes the logits.

    None where there is not exactly one, dense or 1 x 1: an ensemble, a second head for
    distillation, a network without classes.
    """
    prefixes = {name.rpartition(".")[0] for name in classifier_names(network)}
    layers = [network.get_submodule(prefix) for prefix in prefixes]
    if len(layers) == 1 and isinstance(layers[0], nn.Linear | nn.Conv2d):
        return layers[0]
    return None


def earlier_stage(network: nn.Module) -> tuple[nn.Module, int] | None:
    """Return the stage before the last, and its channels, as timm's `feature_info` names it.

    It still knows textures (noise, print) of which the classifier's features say nothing. None
    for a network without such a description.
    """
    stages: Sequence[dict[str, object]] = getattr(network, "feature_info", ())
    if len(stages) < 2:
        return None
    return network.get_submodule(str(stages[-2]["module"])), int(str(stages[-2]["num_chs"]))


def feature_count(network: nn.Module) -> int | None:
    """Return the number of features of an image; None as for `classifier_of`."""
    layer = classifier_of(network)
    if layer is None:
        return None
    count = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    earlier = earlier_stage(network)
    return count if earlier is None else count + earlier[1]


@torch.no_grad()
def predict_with_features(
    network: nn.Module, batches: Iterable[Tensor], precision: Precision, views: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Return float32 logits [rows, classes] and features [rows, features], both on the CPU.

    The logits are those of `btray.core.loop.predict_logits`. The features are what the
    classifier is given and, where there is one, the output of the stage before the last
    (`earlier_stage`), each averaged over places, `tamed`, and weighed. With two `views` they
    are those of the mean over each image and its mirror image. They are None for a network
    without one classifier, see `classifier_of`.
    """
    network.eval()
    logits, features = [], []
    with _seen_by(network) as seen:
        for images in batches:
            with precision.autocast():
                logits.append(mean_of_views(network, images, views).cpu())
            if seen:
                features.append(_joined([torch.stack(passes).mean(dim=0) for passes in seen]))
            for passes in seen:
                passes.clear()
    return (
        torch.cat(logits) if logits else torch.empty(0),
        torch.cat(features) if features else None,
    )


def tamed(features: Tensor) -> Tensor:
    """Raise features [rows, features] to a power, and bring each row to length 1."""
    return nn.functional.normalize(features.sign() * features.abs() ** _POWER, dim=1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Join the classifier's features and, where there are any, the earlier stage's."""
    weights = (1.0, _EARLIER_WEIGHT)
    return torch.cat([w * tamed(part) for w, part in zip(weights, parts, strict=False)], 1).cpu()


@contextmanager
def _seen_by(network: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Collect a list a layer: one tensor [rows, features] a pass.

    In this thread alone: others may use the same network.
    """
    classifier, earlier = classifier_of(network), earlier_stage(network)
    if classifier is None:
        yield []
        return
    owner = threading.get_ident()
    seen: list[list[Tensor]] = [[]]

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == owner:
            seen[0].append(_pooled(inputs[0], isinstance(layer, nn.Conv2d)))

    def keep_earlier(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
        if threading.get_ident() == owner:
            seen[1].append(_pooled(output, output.ndim == 4 and output.shape[1] == channels))

    handles = [classifier.register_forward_pre_hook(keep)]
    if earlier is not None:
        stage, channels = earlier
        seen.append([])
        handles.append(stage.register_forward_hook(keep_earlier))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _pooled(values: Tensor, channels_first: bool) -> Tensor:
    """Average over places: [rows, features]."""
    if channels_first:
        return values.float().mean(dim=(2, 3))
    return values.float().flatten(1, -2).mean(dim=1) if values.ndim > 2 else values.float()
