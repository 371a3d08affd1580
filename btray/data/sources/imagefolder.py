"""Folders of image files, a folder a class, as the public data sets come."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from btray.core.images import MAX_BYTES, SUFFIXES, ImageError
from btray.core.labels import CLASS_NAMES, canonical_label
from btray.data.sources.base import Item, Listing, Record, Rejected
from btray.errors import UserError

_SPLITS: Final = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_ACCEPTED: Final = (
    f"class folders ({', '.join(CLASS_NAMES)}, also written like no_tumor or Glioma-Tumour), "
    "directly or inside Training/Testing or train/validation/test"
)


@dataclass(frozen=True)
class ImageFolder:
    """A folder of class folders, or of split folders of class folders."""

    root: str
    """The folder, absolute."""
    kind: str = "imagefolder"

    @property
    def place(self) -> str:
        """The folder."""
        return self.root

    def listing(self) -> Listing:
        """Walk the folders; hidden files and folders and `__MACOSX` are left out.

        Raises:
            UserError: no such folder, no class folders, a folder of an unknown name,
                no image, or a single class.

        """
        root = Path(self.root)
        walk = _Walk(root, os.path.realpath(root))
        splits, classes = _layout(root, _entries(root))
        for split, folder in splits:
            if not walk.enters(folder):
                continue
            inner, found = _layout(folder, _entries(folder))
            if inner:
                raise UserError(f"{folder}: split folders inside a split folder; use one level")
            for label, class_folder in found:
                walk.folder(class_folder, label, split)
            walk.loose(folder)
        for label, class_folder in classes:
            walk.folder(class_folder, label, None)
        walk.loose(root)
        return _checked(self.root, walk)

    def fingerprint(self, items: tuple[Item, ...]) -> str:
        """Hash the sorted names and the SHA-256 of every file's bytes, in threads."""
        digest = hashlib.sha256()
        with ThreadPoolExecutor(max_workers=8) as pool:
            hashes = pool.map(self._hash, (item.name for item in items))
            for item, content in zip(items, hashes, strict=True):
                line = f"{item.name}\0{item.label}\0{item.split}\0{content}\n"
                digest.update(line.encode())
        return digest.hexdigest()

    def read(self, item: Item) -> Iterator[Record]:
        """Yield the one image of a file; raises OSError and ImageError."""
        path = Path(self.root, item.name)
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError("too_large", f"{size:,} bytes, more than the limit of {MAX_BYTES:,}")
        if item.label is None:
            raise ValueError(f"{item.name}: an image file has the label of its folder")
        yield Record(item.name, path.read_bytes(), item.label, item.split)

    def _hash(self, name: str) -> str:
        try:
            with Path(self.root, name).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            # The reader meets it again and puts it into quarantine.
            return f"unreadable {error.errno}"


@dataclass
class _Walk:
    """Collects files below class folders; follows a link to a folder at most once."""

    root: Path
    real_root: str
    items: list[Item] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    followed: set[str] = field(default_factory=set)

    def folder(self, folder: Path, label: str, split: str | None) -> None:
        """Take every file below one class folder."""
        pending = [folder] if self.enters(folder) else []
        while pending:
            current = pending.pop()
            try:
                entries = _visible(current)
            except OSError as error:
                self.reject(current, "unreadable", f"folder cannot be read: {error.strerror}")
                continue
            for path in entries:
                if not _is_folder(path):
                    self.file(path, label, split)
                elif self.enters(path):
                    pending.append(path)

    def enters(self, folder: Path) -> bool:
        """Say whether a folder, or a link to one, is to be read."""
        return not folder.is_symlink() or self.follow(folder)

    def follow(self, link: Path) -> bool:
        """Say whether a link to a folder leads to files not reached otherwise."""
        target = os.path.realpath(link)
        if any(_overlap(target, other) for other in (self.real_root, *self.followed)):
            self.reject(link, "link_loop", "link to a folder that is read already; not followed")
            return False
        self.followed.add(target)
        return True

    def file(self, path: Path, label: str, split: str | None) -> None:
        """Take one file, or note why not."""
        problem = _problem(path)
        if problem is not None:
            self.reject(path, *problem)
        else:
            self.items.append(Item(self.name(path), label, split))

    def loose(self, folder: Path) -> None:
        """Note files that stand beside class or split folders."""
        for path in _entries(folder):
            if not _is_folder(path):
                self.reject(path, *(_problem(path) or ("no_label", "stands in no class folder")))

    def reject(self, path: Path, code: str, reason: str) -> None:
        """Put a path on the quarantine list."""
        self.rejected.append(Rejected(_printable(self.name(path)), code, reason))

    def name(self, path: Path) -> str:
        """Return a path relative to the source's root."""
        return path.relative_to(self.root).as_posix()


def _overlap(one: str, other: str) -> bool:
    """Say whether one of two real folders is the other, or inside it."""
    return os.path.commonpath((one, other)) in (one, other)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _problem(path: Path) -> tuple[str, str] | None:
    if _printable(str(path)) != str(path):
        return "bad_name", "the file's name is not UTF-8; rename it"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return "unreadable", f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(mode):
        return "not_a_file", "not a regular file"
    if path.suffix.lower() not in SUFFIXES:
        return "not_an_image", f"not named like an image ({', '.join(SUFFIXES)})"
    return None


def _layout(
    folder: Path, entries: Iterable[Path]
) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """Sort a folder's subfolders into (split, folder) and (class, folder) pairs."""
    folders = [path for path in entries if _is_folder(path)]
    splits = [(_SPLITS[p.name.lower()], p) for p in folders if p.name.lower() in _SPLITS]
    labels = [(label, p) for p in folders if (label := canonical_label(p.name)) is not None]
    known = {path for _, path in (*splits, *labels)}
    unknown = [_printable(path.name) for path in folders if path not in known]
    if unknown:
        raise UserError(
            f"{folder}: folders of no known class: {', '.join(unknown)}; btray reads {_ACCEPTED}; "
            "rename or move them"
        )
    if splits and labels:
        raise UserError(f"{folder}: class folders beside split folders; keep one of the two")
    if not known:
        raise UserError(f"{folder}: no class folders; btray reads {_ACCEPTED}")
    return splits, labels


def _entries(folder: Path) -> list[Path]:
    try:
        return _visible(folder)
    except FileNotFoundError:
        raise UserError(f"{folder}: no such folder; give the folder with the images") from None
    except NotADirectoryError:
        raise UserError(f"{folder}: not a folder; give the folder with the images") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None


def _visible(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name != "__MACOSX"
    )


def _printable(name: str) -> str:
    """Return a name as valid Unicode: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _checked(place: str, walk: _Walk) -> Listing:
    items = sorted(walk.items, key=lambda item: item.name)
    rejected = sorted(walk.rejected, key=lambda entry: entry.path)
    if not items:
        raise UserError(f"{place}: no image in the class folders; nothing to import")
    labels = {item.label for item in items}
    if len(labels) < 2:
        raise UserError(
            f"{place}: only the class {labels.pop()} has images; a classifier needs two or more"
        )
    return Listing(tuple(items), tuple(rejected))
