"""Folders of image files, a folder a class, as the public data sets come."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from btray.core.images import SUFFIXES
from btray.core.labels import CLASS_NAMES, canonical_label
from btray.data.sources.base import Item, Listing, Record, Rejected
from btray.data.sources.tree import File, Tree, Walked, printable, shown
from btray.errors import UserError

SPLIT_FOLDERS: Final = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of folders, in lower case, that stand for a split."""


@dataclass(frozen=True)
class ImageFolder:
    """A folder of class folders, or of split folders of class folders."""

    root: str
    """The folder, absolute, or a URI."""
    class_names: tuple[str, ...] = CLASS_NAMES
    """The classes a folder may stand for."""
    kind: str = "imagefolder"

    @property
    def place(self) -> str:
        """The folder."""
        return shown(self.root)

    def listing(self) -> Listing:
        """Walk the folders; hidden files and folders and `__MACOSX` are left out.

        Raises:
            UserError: no such folder, no class folders, a folder of an unknown name,
                no image, or a single class.

        """
        walked = Tree(self.root).walk()
        _check_layout(self.place, walked, self.class_names)
        items: list[Item] = []
        rejected = list(walked.rejected)
        for file in walked.files:
            found = self._take(file)
            if isinstance(found, Item):
                items.append(found)
            else:
                rejected.append(found)
        return _checked(self.place, items, rejected)

    def fingerprint(self, items: tuple[Item, ...]) -> str:
        """Hash the sorted names and the SHA-256 of every file's bytes, in threads."""
        digest = hashlib.sha256()
        hashes = Tree(self.root).hashes(item.name for item in items)
        for item, content in zip(items, hashes, strict=True):
            digest.update(f"{item.name}\0{item.label}\0{item.split}\0{content}\n".encode())
        return digest.hexdigest()

    def read(self, item: Item) -> Iterator[Record]:
        """Yield the one image of a file; raises OSError and ImageError."""
        if item.label is None:
            raise ValueError(f"{item.name}: an image file has the label of its folder")
        yield Record(item.name, Tree(self.root).read(item.name), item.label, item.split)

    def _take(self, file: File) -> Item | Rejected:
        if PurePosixPath(file.name).suffix.lower() not in SUFFIXES:
            reason = f"not named like an image ({', '.join(SUFFIXES)})"
            return Rejected(file.name, "not_an_image", reason)
        split, label = folder_labels(file.name, self.class_names)
        if label is None:
            return Rejected(file.name, "no_label", "stands in no class folder")
        return Item(file.name, label, split)


def folder_labels(name: str, class_names: tuple[str, ...]) -> tuple[str | None, str | None]:
    """Return the split and the class that the folders at the start of a path stand for."""
    folders = PurePosixPath(name).parts[:-1]
    split = SPLIT_FOLDERS.get(folders[0].lower()) if folders else None
    inner = folders[1:] if split else folders
    return split, canonical_label(inner[0], class_names) if inner else None


def _check_layout(root: str, walked: Walked, class_names: tuple[str, ...]) -> None:
    """Raise UserError unless there are class folders, or split folders of class folders."""
    top = [name for name in walked.folders if "/" not in name]
    splits = _check_folders(root, top, class_names)
    for split in splits:
        inner = [
            name.partition("/")[2]
            for name in walked.folders
            if name.startswith(f"{split}/") and name.count("/") == 1
        ]
        folder = f"{root}/{split}"
        if _check_folders(folder, inner, class_names):
            raise UserError(f"{folder}: split folders inside a split folder; use one level")


def _check_folders(folder: str, names: list[str], class_names: tuple[str, ...]) -> list[str]:
    """Return which of a folder's subfolders stand for splits; all others must be classes."""
    splits = [name for name in names if name.lower() in SPLIT_FOLDERS]
    classes = [name for name in names if canonical_label(name, class_names) is not None]
    unknown = [printable(name) for name in names if name not in (*splits, *classes)]
    if unknown:
        raise UserError(
            f"{folder}: folders of no known class: {', '.join(unknown)}; btray reads "
            f"{_accepted(class_names)}; rename or move them, or name your own with --classes"
        )
    if splits and classes:
        raise UserError(f"{folder}: class folders beside split folders; keep one of the two")
    if not names:
        raise UserError(f"{folder}: no class folders; btray reads {_accepted(class_names)}")
    return splits


def _accepted(class_names: tuple[str, ...]) -> str:
    return (
        f"class folders ({', '.join(class_names)}, also written like no_tumor or Glioma-Tumour), "
        "directly or inside Training/Testing or train/validation/test"
    )


def _checked(place: str, items: list[Item], rejected: list[Rejected]) -> Listing:
    if not items:
        raise UserError(f"{place}: no image in the class folders; nothing to import")
    labels = {item.label for item in items}
    if len(labels) < 2:
        raise UserError(
            f"{place}: only the class {labels.pop()} has images; a classifier needs two or more"
        )
    return Listing(tuple(items), tuple(sorted(rejected, key=lambda entry: entry.path)))
