"""A tree of files, in a folder or in a bucket: what is in it, and the bytes of each."""

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Final, TypeVar
from urllib.parse import unquote

import pyarrow.fs

from btray.core import files
from btray.core.images import MAX_BYTES, ImageError
from btray.data.sources.base import Rejected
from btray.errors import UserError

_PAUSES: Final = (0.5, 2.0, 5.0)
"""Seconds between the tries to reach a bucket; afterwards the import ends."""
_BUCKETS: Final = ("s3", "gs", "gcs")
_THREADS: Final = 8

Result = TypeVar("Result")


@dataclass(frozen=True)
class File:
    """A regular file of a tree."""

    name: str
    """Path relative to the tree's root, with slashes."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Walked:
    """What a tree holds, sorted by name."""

    folders: tuple[str, ...]
    """Names of the folders that were entered."""
    files: tuple[File, ...]
    rejected: tuple[Rejected, ...]
    """What is no readable regular file."""


@dataclass(frozen=True)
class Tree:
    """A folder, or a place in a bucket; picklable, for workers read it too."""

    root: str
    """An absolute folder, or a URI."""

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return "://" not in self.root

    def walk(self) -> Walked:
        """List all files; hidden files and folders and `__MACOSX` are left out.

        A link to a folder is followed when it leads to files not reached otherwise.

        Raises:
            UserError: no such folder, or it cannot be listed.

        """
        return _walk_folder(self.root) if self.local else _walk_bucket(self.root)

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            OSError: it cannot be read.
            ImageError: it has more than MAX_BYTES.
            UserError: the bucket cannot be reached, may not be read, or is gone.

        """
        return self._use(name, _read_bounded)

    def head(self, name: str, size: int) -> bytes:
        """Return the first bytes of a file; raises as `read`."""
        return self._use(name, lambda stream: bytes(stream.read(size)))

    def hash(self, name: str) -> str:
        """Return the SHA-256 of a file's bytes, or why it cannot be read; UserError as `read`."""
        try:
            return self._use(name, _digest)
        except OSError as error:
            # The reader meets it again and puts it into quarantine.
            return f"unreadable {error.errno}"

    def hashes(self, names: Iterable[str]) -> Iterator[str]:
        """Yield `hash` of many files, in threads."""
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(self.hash, names)

    def _use(self, name: str, use: Callable[[IO[bytes]], Result]) -> Result:
        """Open a file or object and use it; what a bucket fails at is tried again."""
        if self.local:
            with Path(self.root, name).open("rb") as stream:
                return use(stream)
        filesystem, base = _resolved(self.root)
        called = shown(self.root)  # the rest of the path may be a patient's name

        def attempt() -> Result:
            with filesystem.open_input_file(f"{base}/{name}") as stream:
                return use(stream)

        try:
            return _patiently(called, attempt)
        except FileNotFoundError:
            kind = _patiently(called, lambda: filesystem.get_file_info(base).type)
            if kind == pyarrow.fs.FileType.NotFound:
                raise UserError(
                    f"{shown(self.root)}: not there any more; nothing was imported"
                ) from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None


def locate(uri: str) -> tuple[Tree, str]:
    """Return the tree a path or URI is in, and its name there: of an object, its bucket.

    A whole bucket shares one tree, and so one pool of connections.
    """
    scheme, mark, rest = uri.partition("://")
    place, question, query = rest.partition("?")
    if scheme in _BUCKETS and mark:
        bucket, _, inside = place.partition("/")
        return Tree(f"{scheme}://{bucket}{question}{query}"), unquote(inside)
    root, name = files.split(unquote(place) if scheme == "file" and mark else uri)
    return Tree(root), name


def fetch(uri: str) -> bytes:
    """Return the bytes of a file or object; raises as `Tree.read`."""
    tree, name = locate(uri)
    return tree.read(name)


def content_hash(uri: str) -> str:
    """Return the SHA-256 of a file's bytes, or why it cannot be read; see `Tree.hash`."""
    tree, name = locate(uri)
    return tree.hash(name)


def printable(name: str) -> str:
    """Return a name as valid Unicode: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _read_bounded(stream: IO[bytes]) -> bytes:
    stream.seek(0, os.SEEK_END)
    size = stream.tell()
    if size > MAX_BYTES:
        raise ImageError("too_large", f"{size:,} bytes, more than the limit of {MAX_BYTES:,}")
    stream.seek(0)
    return bytes(stream.read())


def _digest(stream: IO[bytes]) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def _patiently(called: str, attempt: Callable[[], Result]) -> Result:
    """Try several times, waiting longer each time; a missing object is not tried again.

    Raises:
        FileNotFoundError: it is not there.
        UserError: no permission, or no answer to the last try.

    """
    for pause in (*_PAUSES, None):
        try:
            return attempt()
        except FileNotFoundError:
            raise
        except OSError as error:
            if isinstance(error, PermissionError) or "ACCESS_DENIED" in str(error):
                raise UserError(
                    f"{called}: no permission to read it; check the credentials and the rights "
                    "they have on the bucket"
                ) from None
            if pause is None:
                raise UserError(
                    f"{called}: cannot be read after {len(_PAUSES) + 1} tries: "
                    f"{_reason(error)}; run the import again when the bucket answers"
                ) from None
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _reason(error: OSError) -> str:
    """Return what a bucket failed at, without its text: that names the object."""
    code = re.search(r"(?:AWS Error |Status\()([A-Z_]+)", str(error))
    if code is not None:
        return code[1]
    return os.strerror(error.errno) if error.errno else type(error).__name__


@lru_cache(maxsize=1024)
def _resolved(root: str) -> tuple[pyarrow.fs.FileSystem, str]:
    return files.resolve(root)


def shown(uri: str) -> str:
    """Return a folder or URI without the keys and the query it may carry."""
    return re.sub(r"://[^/@]*@", "://", uri).partition("?")[0] if "://" in uri else uri


def _walk_folder(root: str) -> Walked:
    walk = _FolderWalk(Path(root), os.path.realpath(root))
    walk.run()
    return _sorted(walk.folders, walk.files, walk.rejected)


def _sorted(folders: list[str], files_: list[File], rejected: list[Rejected]) -> Walked:
    return Walked(
        tuple(sorted(folders)),
        tuple(sorted(files_, key=lambda file: file.name)),
        tuple(sorted(rejected, key=lambda entry: entry.path)),
    )


@dataclass
class _FolderWalk:
    """Collects the files below a folder; follows a link to a folder at most once."""

    root: Path
    real_root: str
    folders: list[str] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    followed: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Walk everything, depth first in the order of names."""
        pending = list(reversed(_root_entries(self.root)))
        while pending:
            path = pending.pop()
            if not _is_folder(path):
                self.file(path)
            elif not path.is_symlink() or self.follow(path):
                self.folders.append(self.name(path))
                pending += reversed(self.entries(path))

    def entries(self, folder: Path) -> list[Path]:
        """List a folder below the root, or note why not."""
        try:
            return _visible(folder)
        except OSError as error:
            self.reject(folder, "unreadable", f"folder cannot be read: {error.strerror}")
            return []

    def follow(self, link: Path) -> bool:
        """Say whether a link to a folder leads to files not reached otherwise."""
        target = os.path.realpath(link)
        if any(_overlap(target, other) for other in (self.real_root, *self.followed)):
            self.reject(link, "link_loop", "link to a folder that is read already; not followed")
            return False
        self.followed.add(target)
        return True

    def file(self, path: Path) -> None:
        """Take one file, or note why not."""
        if printable(str(path)) != str(path):
            self.reject(path, "bad_name", "the file's name is not UTF-8; rename it")
            return
        try:
            found = path.stat()
        except OSError as error:
            self.reject(path, "unreadable", f"cannot be read: {error.strerror}")
            return
        if stat.S_ISREG(found.st_mode):
            self.files.append(File(self.name(path), found.st_size))
        else:
            self.reject(path, "not_a_file", "not a regular file")

    def reject(self, path: Path, code: str, reason: str) -> None:
        """Put a path on the quarantine list."""
        self.rejected.append(Rejected(printable(self.name(path)), code, reason))

    def name(self, path: Path) -> str:
        """Return a path relative to the root."""
        return path.relative_to(self.root).as_posix()


def _overlap(one: str, other: str) -> bool:
    """Say whether one of two real folders is the other, or inside it."""
    return os.path.commonpath((one, other)) in (one, other)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _root_entries(folder: Path) -> list[Path]:
    try:
        return _visible(folder)
    except FileNotFoundError:
        raise UserError(f"{folder}: no such folder; give the folder with the images") from None
    except NotADirectoryError:
        raise UserError(f"{folder}: not a folder; give the folder with the images") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_visible(path.name))


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _walk_bucket(root: str) -> Walked:
    filesystem, base = _resolved(root)
    kind = _patiently(shown(root), lambda: filesystem.get_file_info(base).type)
    if kind == pyarrow.fs.FileType.NotFound:
        raise UserError(f"{shown(root)}: no such folder; give the folder with the images")
    if kind != pyarrow.fs.FileType.Directory:
        raise UserError(f"{shown(root)}: not a folder; give the folder with the images")
    selector = pyarrow.fs.FileSelector(base, recursive=True)
    folders, found = [], []
    for entry in _patiently(shown(root), lambda: filesystem.get_file_info(selector)):
        name = entry.path[len(base) :].lstrip("/")
        if not all(_is_visible(part) for part in PurePosixPath(name).parts):
            continue
        if entry.type == pyarrow.fs.FileType.Directory:
            folders.append(name)
        else:
            found.append(File(name, entry.size))
    return _sorted(folders, found, [])
