"""The bundle: a trained network as safetensors and JSON, the contract of all that uses it.

It may hold several networks that answer as one; the tensors of the first are then called `0.…`,
and so on. Beside the weights there are tensors called `detector/…`, what tells strange images, and
`seen/…`, hashes of the images it was trained and chosen on.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from btray.config import ModelConfig
from btray.core import files
from btray.core.answers import strange_above
from btray.core.card import Card, card_hash, find_card, write_fields
from btray.core.ensemble import Ensemble
from btray.core.layout import CARD, MANIFEST, WEIGHTS
from btray.core.seen import Seen
from btray.core.strange import Detector
from btray.core.zoo import create_model
from btray.errors import UserError

_DETECTOR, _SEEN = "detector/", "seen/"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    uri: str
    card: Card
    weights: dict[str, Tensor]
    detector: Detector | None = None
    """Tells strange images; None for an ensemble, or where too few rows were there to fit it."""
    seen: Seen | None = None
    """Hashes of the images it was trained and chosen on; None where they are not known."""

    @property
    def version(self) -> str:
        """Return a short name of these very weights and settings."""
        return self.card.version

    @property
    def strange_above(self) -> float:
        """Return the score of strangeness above which an image is out of distribution."""
        return strange_above(self.card, self.detector)

    def network(self, device: torch.device | None = None) -> nn.Module:
        """Build the network with its weights, in evaluation mode.

        Raises:
            UserError: the weights do not fit the network or the class names.

        """
        members = self.card.members
        if not members:
            network = self._load(self.card.model, self.weights)
        else:
            networks = [
                self._load(member.model, self.weights_of(number))
                for number, member in enumerate(members)
            ]
            network = Ensemble(
                networks, [m.weight for m in members], [m.model.views for m in members]
            )
        return network.eval().to(device or torch.device("cpu"))

    def _load(self, model: ModelConfig, weights: dict[str, Tensor]) -> nn.Module:
        network = create_model(model, len(self.card.class_names), self.card.image.size)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            detail = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"{self.uri}: the weights are not of a {model.name} with "
                f"{len(self.card.class_names)} classes ({detail}); export the bundle again"
            ) from None
        return network

    def weights_of(self, member: int) -> dict[str, Tensor]:
        """Return the weights of one member of an ensemble, by its network's own names."""
        prefix = f"{member}."
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.weights.items()
            if name.startswith(prefix)
        }

    def with_members(self, numbers: Sequence[int]) -> "Bundle":
        """Return the ensemble of some of the members alone, in memory, its card hashed anew."""
        chosen = [self.card.members[number] for number in numbers]
        total = sum(member.weight for member in chosen)
        members = [m.model_copy(update={"weight": m.weight / total}) for m in chosen]
        card = self.card.model_copy(update={"members": tuple(members)})
        hashed = card.model_copy(update={"card_sha256": card_hash(card.model_dump(mode="json"))})
        return replace(
            self,
            card=hashed,
            weights=joined([self.weights_of(n) for n in numbers]),
            detector=None,
            seen=None,
        )


def joined(weights: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the weights of several networks as those of an ensemble."""
    return {
        f"{number}.{name}": tensor
        for number, own in enumerate(weights)
        for name, tensor in own.items()
    }


def save_bundle(
    directory: Path,
    weights: dict[str, Tensor],
    card: Card,
    detector: Detector | None = None,
    seen: Seen | None = None,
) -> Bundle:
    """Write a bundle, the card last, and read it back; `card` needs no hashes.

    With its `precision` float16, kernels and matrices are rounded to that. Vectors, such as the
    statistics of batch norm, take no room and stay float32.

    Raises:
        UserError: weights beyond the range of float16.

    """
    if card.precision == "float16":
        weights = {name: _halved(name, tensor) for name, tensor in weights.items()}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CARD).unlink(missing_ok=True)
    arrays = detector.tensors() if detector else {}
    beside = {
        _DETECTOR: {name: torch.from_numpy(values) for name, values in arrays.items()},
        _SEEN: seen.tensors() if seen else {},
    }
    extras = {
        f"{prefix}{name}": tensor
        for prefix, tensors in beside.items()
        for name, tensor in tensors.items()
    }
    save_file(weights | extras, directory / WEIGHTS)
    (directory / WEIGHTS).chmod(0o666 & ~_umask())
    content = hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()
    fields = card.model_copy(update={"weights_sha256": content}).model_dump(mode="json")
    fields["card_sha256"] = card_hash(fields)
    write_fields(fields, directory / CARD)
    return load_bundle(str(directory))


def _halved(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise UserError(f"{name} holds values beyond float16; keep the bundle in float32")
    return half


def load_bundle(uri: str) -> Bundle:
    """Open a bundle, or the bundle of a run, in a local folder or at a URI.

    Raises:
        UserError: no bundle there, of a newer format, altered or damaged.

    """
    uri, card = find_card(uri)
    tensors = _read_weights(files.join(uri, WEIGHTS), card.weights_sha256)
    detector, seen = (_taken(tensors, prefix) for prefix in (_DETECTOR, _SEEN))
    try:
        opened = Detector.from_tensors(detector) if detector else None
    except ValueError as error:
        raise UserError(f"{uri}: {error}; export the bundle again") from None
    return Bundle(
        uri,
        card,
        {
            name: tensor.float() if tensor.dtype == torch.float16 else tensor
            for name, tensor in tensors.items()
        },
        opened,
        Seen.from_tensors(seen) if seen else None,
    )


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors of a prefix out, without it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read_weights(uri: str, sha256: str) -> dict[str, Tensor]:
    try:
        data = files.read(uri)
    except FileNotFoundError:
        if files.exists(files.join(files.split(uri)[0], MANIFEST)):
            raise UserError(
                f"{files.split(uri)[0]}: an ONNX bundle, which only answers; give the bundle it "
                "was made of"
            ) from None
        raise UserError(f"{uri}: missing; export the bundle again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{uri}: altered since it was written; export the bundle again")
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise UserError(f"{uri}: not safetensors: {error}; export the bundle again") from None
