"""`bundle.json`: all about a network but its weights. No torch here: serving reads it first."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from btray.config import ImageConfig, ModelConfig, Section
from btray.core import files
from btray.core.calibration import Calibration
from btray.core.layout import CARD, FOLDER
from btray.errors import UserError

FORMAT_VERSION: Final = 3
"""Of what is written: 2 has `members`, `precision` and `assignment_hash`, 3 may have a detector
and hashes."""
READABLE: Final = (1, 2, 3)


class Provenance(Section):
    """Where a bundle comes from."""

    btray_version: str
    """Version of btray that trained it."""
    code_version: str | None
    """Git commit it was trained from; null when installed without one."""
    data_hash: str
    """Content hash of the data set."""
    assignment_hash: str | None = None
    """Hash of the data set's splits and folds; null in bundles of format version 1."""
    seed: int
    """Seed of the run."""
    run: str | None
    """Name of the run."""
    epoch: int
    """Epoch of the checkpoint, from 0."""
    created: str
    """UTC, ISO 8601."""
    initial_weights: str | None = None
    """What the training started from: the hub, a package, or `file`; null for a random start."""
    teacher: str | None = None
    """Name and version of the bundle it was distilled from; null without one."""
    refit: bool = False
    """Trained on validation too, after a search: no score on validation says anything of it, and
    its calibration is that of the network the search had found."""


class Member(Section):
    """One network of an ensemble."""

    name: str
    """What the model is called."""
    version: str
    """Of the bundle it was taken from."""
    weight: float = Field(gt=0, le=1)
    """Of its vote; those of all members add up to 1."""
    fold: int | None
    """The fold it was not trained on; null when it was trained on the train split."""
    model: ModelConfig
    metrics: dict[str, float]
    """Its own scores on the rows its checkpoint was chosen on."""
    run: str | None
    """Name of its run."""
    epoch: int
    """Epoch of its checkpoint, from 0."""
    seed: int
    """Seed of its run."""


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
    """The run's whole configuration; of an ensemble, its first member's."""
    members: tuple[Member, ...] = ()
    """The networks of an ensemble, in the order of their weights; empty for a single one."""
    precision: Literal["float32", "float16"] = "float32"
    """Type in which kernels and matrices are stored; they are loaded as float32."""
    weights_sha256: str
    """SHA-256 of `model.safetensors`."""
    card_sha256: str = ""
    """SHA-256 of this file without this field: sorted keys, no spaces."""

    @property
    def version(self) -> str:
        """Return a short name of these very weights and settings."""
        return self.card_sha256[:12]

    @property
    def folds(self) -> tuple[int | None, ...]:
        """The folds that were held out from training; None stands for the validation split."""
        if self.members:
            found = {member.fold for member in self.members}
            return tuple(sorted(found, key=lambda fold: -1 if fold is None else fold))
        return (self.train_config.get("data", {}).get("fold"),)


def read_card(uri: str) -> Card:
    """Read the card of a bundle, or of the bundle of a run, in a local folder or at a URI.

    Raises:
        UserError: no bundle there, of a newer format, altered or damaged.

    """
    return find_card(uri)[1]


def find_card(uri: str) -> tuple[str, Card]:
    """Return the folder or URI of a bundle, itself or that of a run, and its card.

    Raises:
        UserError: as `read_card`.

    """
    for place in (uri, files.join(uri, FOLDER)):
        fields = _read(place)
        if fields is not None:
            return place, _checked(fields, files.join(place, CARD))
    raise UserError(f"{uri}: no bundle (no {CARD}); give a bundle or the run it belongs to")


def _read(uri: str) -> dict[str, Any] | None:
    where = files.join(uri, CARD)
    try:
        fields = dict(json.loads(files.read(where)))
        version = fields["format_version"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{where}: damaged; export the bundle again") from None
    if version not in READABLE:
        raise UserError(
            f"{uri}: bundle of format version {version!r}, this btray reads {FORMAT_VERSION}; "
            "use the btray that wrote it"
        )
    return fields


def _checked(fields: dict[str, Any], where: str) -> Card:
    if fields.get("card_sha256") != card_hash(fields):
        raise UserError(f"{where}: altered since it was written; export the bundle again")
    try:
        return Card.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {path}: {first['msg']}; export the bundle again") from None


def fields_of(card: Card) -> dict[str, Any]:
    """Return the very fields of a card that were hashed, to write it elsewhere.

    Cards of older formats lack what came later, so that the hash of all fields is another one.

    Raises:
        ValueError: a card that was changed after it had been hashed.

    """
    for leave_out in (False, True):
        fields = card.model_dump(mode="json", exclude_unset=leave_out)
        if card_hash(fields) == card.card_sha256:
            return fields
    raise ValueError("the card is not the one that was hashed")


def write_fields(fields: dict[str, Any], path: Path) -> None:
    """Write a card's fields, in whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    partial.rename(path)


def card_hash(fields: dict[str, Any]) -> str:
    """Return the SHA-256 of all fields but the hash itself: sorted keys, no spaces."""
    rest = {key: value for key, value in fields.items() if key != "card_sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
