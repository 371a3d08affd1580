"""What a source is: a cheap listing in the driver, and bytes read inside a worker."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from btray.errors import UserError


@dataclass(frozen=True)
class Item:
    """A unit of reading, such as one file; what is not known before reading is None."""

    name: str
    """Path relative to the source's root, unique in it."""
    label: str | None = None
    """Class name."""
    split: str | None = None
    """Split the source itself puts it in: train, validation or test."""
    patient_id: str | None = None
    plane: str | None = None
    """Axial, coronal or sagittal."""
    sequence: str | None = None
    """T1, T1ce, T2 or FLAIR."""
    number: int = 0
    """The item's number in the source's own order."""
    images: int = 1
    """Images it yields."""
    path: str | None = None
    """Where it is read from, if its name does not say so."""
    content: str | None = None
    """SHA-256 of its bytes, where the listing has read them. In the quarantine list it stands
    for the name of an item that has it: the item's path may tell who the patient is."""
    study_id: str | None = None
    series_id: str | None = None
    fold: int | None = None
    """Fold the source itself puts it in, from 0."""
    sex: str | None = None
    """F, M or O."""
    age: int | None = None
    """Years; 90 stands for all above."""

    def called(self, name: str) -> str:
        """Return how the quarantine list calls one image of this item."""
        if self.content is None:
            return name
        return f"sha256:{self.content}{name.removeprefix(self.name)}"


@dataclass(frozen=True)
class Record:
    """One encoded image with what is known of it."""

    name: str
    """Path relative to the source's root, unique in it."""
    data: bytes
    """Encoded image exactly as it is stored."""
    label: str
    split: str | None = None
    """Split the source itself puts it in: train, validation or test."""
    fold: int | None = None
    """Fold the source itself puts it in, from 0."""
    patient_id: str | None = None
    """Pseudonym, as are study_id and series_id."""
    study_id: str | None = None
    series_id: str | None = None
    plane: str | None = None
    """Axial, coronal or sagittal, in lower case."""
    sequence: str | None = None
    """T1, T1ce, T2 or FLAIR."""
    field_strength: float | None = None
    """Tesla."""
    vendor: str | None = None
    """Of the scanner."""
    sex: str | None = None
    """F, M or O."""
    age: int | None = None
    """Years; 90 stands for all above."""
    mask: bytes | None = None
    """PNG [height, width], above 0 inside the tumour."""


@dataclass(frozen=True)
class Rejected:
    """A file that is not in the data set, and why."""

    path: str
    """Path relative to the source's root."""
    code: str
    """Stable name of the reason."""
    reason: str
    """The reason for a person."""


@dataclass(frozen=True)
class Listing:
    """Everything a source holds, sorted by name."""

    items: tuple[Item, ...]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()
    """What a person should be told, a line each."""

    @property
    def images(self) -> int:
        """Images the items are expected to yield."""
        return sum(item.images for item in self.items)


def checked_listing(
    place: str,
    items: Iterable[Item],
    rejected: Iterable[Rejected],
    notes: tuple[str, ...] = (),
    suffix: str = "",
) -> Listing:
    """Return a listing in the order of the images' names, which are an item's and `suffix` ….

    Raises:
        UserError: nothing to import, or items of a single known class.

    """
    ordered = tuple(sorted(items, key=lambda item: f"{item.name}{suffix}"))
    refused = tuple(sorted(rejected, key=lambda entry: entry.path))
    if not ordered:
        first = f"; the first: {refused[0].path}: {refused[0].reason}" if refused else ""
        raise UserError(f"{place}: nothing to import{first}")
    labels = {item.label for item in ordered}
    if len(labels) == 1 and None not in labels:
        raise UserError(
            f"{place}: only the class {labels.pop()} has images; a classifier needs two or more"
        )
    return Listing(ordered, refused, notes)


def without_patient(unknown: int, total: int) -> tuple[str, ...]:
    """Tell how many items name no patient: of those, splits can only part by likeness."""
    if not unknown:
        return ()
    return (
        f"{unknown:,} of {total:,} have no patient_id and count as patients of their own: give "
        "patient_id, or images of one patient may stand in train and in test",
    )


class Source(Protocol):
    """Where images come from; picklable, for `read` runs in Ray workers."""

    @property
    def kind(self) -> str:
        """Name of the kind of source."""
        ...

    @property
    def place(self) -> str:
        """What a person calls it in messages, such as its folder."""
        ...

    def listing(self) -> Listing:
        """List what there is without decoding anything.

        Raises:
            UserError: nothing there, or not laid out as this source must be.

        """
        ...

    def fingerprint(self, items: tuple[Item, ...]) -> str:
        """Return a hexadecimal SHA-256 that changes with any name or content."""
        ...

    def read(self, item: Item) -> Iterator[Record]:
        """Yield the encoded images of one item.

        Raises:
            OSError: it cannot be read.
            ImageError: it is refused unread.
            UserError: the whole source cannot be reached any more.

        """
        ...
