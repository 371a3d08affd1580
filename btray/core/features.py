"""What a network's classifier is given: pooled features, read in the pass that makes the logits."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from btray.core.loop import Precision, mean_of_views
from btray.core.weights import classifier_names


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


def feature_count(network: nn.Module) -> int | None:
    """Return the number of features of an image; None as for `classifier_of`."""
    layer = classifier_of(network)
    if layer is None:
        return None
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


@torch.no_grad()
def predict_with_features(
    network: nn.Module, batches: Iterable[Tensor], precision: Precision, views: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Return float32 logits [rows, classes] and features [rows, features], both on the CPU.

    The logits are those of `btray.core.loop.predict_logits`; with two `views` the features too
    are the mean over each image and its mirror image. Features that are still maps are averaged
    over places. They are None for a network without one classifier, see `classifier_of`.
    """
    network.eval()
    logits, features = [], []
    with _inputs_of(classifier_of(network)) as seen:
        for images in batches:
            with precision.autocast():
                logits.append(mean_of_views(network, images, views).cpu())
            if seen:
                features.append(torch.stack(seen).mean(dim=0).cpu())
            seen.clear()
    return (
        torch.cat(logits) if logits else torch.empty(0),
        torch.cat(features) if features else None,
    )


@contextmanager
def _inputs_of(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collect what a layer is given, pooled, in this thread: others may use the same network."""
    seen: list[Tensor] = []
    if layer is None:
        yield seen
        return
    owner = threading.get_ident()

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == owner:
            seen.append(_pooled(inputs[0], layer))

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _pooled(values: Tensor, layer: nn.Module) -> Tensor:
    """Average over places; a convolution has its channels first, a dense layer last."""
    if isinstance(layer, nn.Conv2d):
        return values.float().mean(dim=(2, 3))
    return values.float().flatten(1, -2).mean(dim=1) if values.ndim > 2 else values.float()
