"""Transfer learning: what stands still while the rest of a network learns."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from btray.config import TrainConfig
from btray.core.weights import classifier_names


def frozen_steps(config: TrainConfig, steps: int, losses: Sequence[float]) -> int:
    """Return the optimiser steps, from the first, in which only the classifier learns.

    `steps` are those of an epoch, `losses` the validation losses of the epochs so far: the
    phase ends early when they stall, after which it is over for good.
    """
    planned = round(config.freeze_epochs * steps)
    if config.freeze_patience:
        best, waited = float("inf"), 0
        for epoch, loss in enumerate(losses, start=1):
            waited = 0 if loss < best else waited + 1
            best = min(best, loss)
            if waited >= config.freeze_patience:
                return min(planned, epoch * steps)
    return planned


def freeze(network: nn.Module, backbone: bool, batch_norm: bool) -> list[nn.Module]:
    """Choose the parameters that learn; return the layers that must stay in evaluation mode.

    With the `backbone` all but the classifier stands still. Batch norm's statistics stand still
    with its parameters: the batches of a new archive would change what is not trained.
    """
    head = classifier_names(network)
    norms: list[nn.Module] = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    kept = {id(parameter) for layer in norms for parameter in layer.parameters()}
    for name, parameter in network.named_parameters():
        frozen = (backbone and name not in head) or (batch_norm and id(parameter) in kept)
        parameter.requires_grad_(not frozen)
    return norms if backbone or batch_norm else []
