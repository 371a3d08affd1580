"""The bundle: a trained network as safetensors and JSON, the contract of all that uses it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from btray.config import ImageConfig, ModelConfig, Section
from btray.core import files
from btray.core.calibration import Calibration
from btray.core.layout import CARD, FOLDER, WEIGHTS
from btray.core.zoo import create_model
from btray.errors import UserError

FORMAT_VERSION: Final = 1


class Provenance(Section):
    """Where a bundle comes from."""

    btray_version: str
    """Version of btray that trained it."""
    code_version: str | None
    """Git commit it was trained from; null when installed without one."""
    data_hash: str
    """Content hash of the data set."""
    seed: int
    """Seed of the run."""
    run: str | None
    """Name of the run."""
    epoch: int
    """Epoch of the checkpoint, from 0."""
    created: str
    """UTC, ISO 8601."""


class Card(Section):
    """`bundle.json`: all about a network but its weights."""

    format_version: int
    """Version of the bundle's layout."""
    name: str
    """What the model is called."""
    class_names: tuple[str, ...] = Field(min_length=2)
    """Class names in the order of the logits."""
    model: ModelConfig
    image: ImageConfig
    metrics: dict[str, float]
    """Scores on the validation split, on which the checkpoint was chosen."""
    calibration: Calibration
    provenance: Provenance
    train_config: dict[str, Any]
    """The run's whole configuration."""
    weights_sha256: str
    """SHA-256 of `model.safetensors`."""
    card_sha256: str = ""
    """SHA-256 of this file without this field: sorted keys, no spaces."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    uri: str
    card: Card
    weights: dict[str, Tensor]

    @property
    def version(self) -> str:
        """Return a short name of these very weights and settings."""
        return self.card.card_sha256[:12]

    def network(self, device: torch.device | None = None) -> nn.Module:
        """Build the network with its weights, in evaluation mode.

        Raises:
            UserError: the weights do not fit the network or the class names.

        """
        network = create_model(self.card.model, len(self.card.class_names), self.card.image.size)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            detail = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"{self.uri}: the weights are not of a {self.card.model.name} with "
                f"{len(self.card.class_names)} classes ({detail}); export the bundle again"
            ) from None
        return network.eval().to(device or torch.device("cpu"))


def save_bundle(directory: Path, weights: dict[str, Tensor], card: Card) -> Bundle:
    """Write a bundle, the card last, and read it back; `card` needs no hashes."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CARD).unlink(missing_ok=True)
    save_file(weights, directory / WEIGHTS)
    content = hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()
    fields = card.model_copy(update={"weights_sha256": content}).model_dump(mode="json")
    fields["card_sha256"] = _card_hash(fields)
    partial = directory / f".{CARD}.partial"
    partial.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    partial.rename(directory / CARD)
    return load_bundle(str(directory))


def load_bundle(uri: str) -> Bundle:
    """Open a bundle, or the bundle of a run, in a local folder or at a URI.

    Raises:
        UserError: no bundle there, of a newer format, altered or damaged.

    """
    given = uri
    fields = _read_card(uri)
    if fields is None:
        uri = files.join(uri, FOLDER)
        fields = _read_card(uri)
    if fields is None:
        raise UserError(f"{given}: no bundle (no {CARD}); give a bundle or the run it belongs to")
    where = files.join(uri, CARD)
    if fields.get("card_sha256") != _card_hash(fields):
        raise UserError(f"{where}: altered since it was written; export the bundle again")
    try:
        card = Card.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {path}: {first['msg']}; export the bundle again") from None
    return Bundle(uri, card, _read_weights(files.join(uri, WEIGHTS), card.weights_sha256))


def _read_card(uri: str) -> dict[str, Any] | None:
    where = files.join(uri, CARD)
    try:
        fields = dict(json.loads(files.read(where)))
        version = fields["format_version"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{where}: damaged; export the bundle again") from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{uri}: bundle of format version {version!r}, this btray reads {FORMAT_VERSION}; "
            "use the btray that wrote it"
        )
    return fields


def _read_weights(uri: str, sha256: str) -> dict[str, Tensor]:
    try:
        data = files.read(uri)
    except FileNotFoundError:
        raise UserError(f"{uri}: missing; export the bundle again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{uri}: altered since it was written; export the bundle again")
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise UserError(f"{uri}: not safetensors: {error}; export the bundle again") from None


def _card_hash(fields: dict[str, Any]) -> str:
    rest = {key: value for key, value in fields.items() if key != "card_sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
