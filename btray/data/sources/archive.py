"""Zip and tar archives, unpacked into a folder of their own that is gone afterwards."""

import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from btray.core.labels import CLASS_NAMES, canonical_label
from btray.data.sources.imagefolder import SPLIT_FOLDERS
from btray.data.sources.tree import Tree
from btray.errors import UserError

SUFFIXES: Final = (
    ".zip",
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
)
MAX_BYTES: Final = 200 * 1024**3
"""Most that an archive may unpack to, in bytes, archives inside it included."""
MAX_RATIO: Final = 200
"""Most bytes unpacked for a byte packed, once SMALL bytes are exceeded."""
SMALL: Final = 256 * 1024**2
"""So much may come of any archive, whatever the ratio, in bytes."""
MAX_FILES: Final = 2_000_000
"""Most files in it."""
_CHUNK: Final = 1024 * 1024
_DAMAGE: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    UnicodeError,
    ValueError,
)


def is_archive(uri: str) -> bool:
    """Say whether a file or URI is named like an archive btray unpacks."""
    return uri.partition("?")[0].lower().endswith(SUFFIXES)


@contextmanager
def unpacked(uri: str, class_names: tuple[str, ...] = CLASS_NAMES) -> Iterator[str]:
    """Give the folder an archive is unpacked to, zips inside it too, and remove it at the end.

    A folder that is alone at the top, and no class or split, is entered. Messages name the
    archive, not the folder.

    Raises:
        UserError: not there, damaged, encrypted, leading out of its folder (`../`, links,
            absolute names), holding devices or names twice, or unpacking to too much.

    """
    with tempfile.TemporaryDirectory(prefix="btray-archive-") as temporary:
        folder = Path(temporary, "unpacked")
        try:
            _unpack_all(uri, folder, Path(temporary, "archive"))
        except OSError as error:
            raise UserError(
                f"{uri}: cannot be unpacked: {error.strerror}; TMPDIR names the folder to use"
            ) from None
        try:
            yield str(_entered(folder, class_names))
        except UserError as error:
            raise UserError(str(error).replace(str(folder), uri)) from None


@dataclass
class _Budget:
    """What may still be unpacked, of one archive and those inside it."""

    uri: str
    packed: int
    """Bytes of the archive."""
    size: int = 0
    files: int = 0

    def enter(self, name: str) -> None:
        """Count one file; raises UserError when there are too many, or it leads outside."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise UserError(f"{self.uri}: a name in it leads out of its folder; not unpacked")
        self.files += 1
        if self.files > MAX_FILES:
            raise UserError(f"{self.uri}: more than {MAX_FILES:,} files; unpack it yourself")

    def spend(self, size: int) -> None:
        """Count bytes; raises UserError when there are too many for so small an archive."""
        self.size += size
        if self.size > MAX_BYTES or self.size > max(SMALL, MAX_RATIO * self.packed):
            raise UserError(
                f"{self.uri}: unpacks to more than {min(MAX_BYTES, self.size - 1):,} bytes from "
                f"{self.packed:,}, as an archive bomb does; unpack it yourself if you trust it"
            )


def _unpack_all(uri: str, folder: Path, copy: Path) -> None:
    archive = _fetched(uri, copy)
    folder.mkdir()
    budget = _Budget(uri, archive.stat().st_size)
    _unpack(archive, folder, budget)
    # One level of zips inside is unpacked, as Figshare publishes them, and no more.
    for file in Tree(str(folder)).walk().files:
        if file.name.lower().endswith(".zip"):
            inner = folder / file.name
            _unpack(inner, _free(inner.with_suffix("")), budget)
            inner.unlink()


def _fetched(uri: str, copy: Path) -> Path:
    """Return where the archive is on this machine; one in a bucket is copied first."""
    import pyarrow.fs

    from btray.core import files

    filesystem, path = files.resolve(uri)
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        if not Path(path).is_file():
            raise UserError(f"{uri}: no such file")
        return Path(path)
    try:
        with filesystem.open_input_stream(path, compression=None) as source, copy.open("wb") as to:
            shutil.copyfileobj(source, to, _CHUNK)
    except OSError as error:
        raise UserError(f"{uri}: cannot be read: {files.reason(error)}") from None
    return copy


def _unpack(archive: Path, folder: Path, budget: _Budget) -> None:
    folder.mkdir(exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder, budget)
        else:
            _unpack_tar(archive, folder, budget)
    except _DAMAGE as error:
        raise _damaged(budget, error) from None
    except OSError as error:
        # What the system says has a number; gzip and bz2 speak of damage without one.
        if error.errno is not None:
            raise
        raise _damaged(budget, error) from None


def _damaged(budget: _Budget, error: Exception) -> UserError:
    """Say that an archive is damaged; the error's text may name a member, and so a patient."""
    reason = type(error).__name__
    return UserError(f"{budget.uri}: damaged, or no zip or tar archive ({reason})")


def _unpack_zip(archive: Path, folder: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{budget.uri}: holds links or devices; unpack it yourself")
            if entry.flag_bits & 1:
                raise UserError(f"{budget.uri}: encrypted; unpack it yourself with its password")
            budget.enter(entry.filename)
            if not entry.is_dir():
                with packed.open(entry) as source:
                    _write(source, folder / entry.filename, budget)


def _unpack_tar(archive: Path, folder: Path, budget: _Budget) -> None:
    with tarfile.open(archive) as packed:
        for entry in packed:
            budget.enter(entry.name)
            source = packed.extractfile(entry) if entry.isreg() else None
            if source is not None:
                with source:
                    _write(source, folder / entry.name, budget)
            elif not entry.isdir():
                raise UserError(f"{budget.uri}: holds links or devices; unpack it yourself")
        _check_end(packed)
        # The checksum of what is compressed stands behind the last member.
        while packed.fileobj and (rest := packed.fileobj.read(_CHUNK)):
            budget.spend(len(rest))


def _check_end(packed: tarfile.TarFile) -> None:
    """Raise TarError unless zeros follow the last member: tarfile ends at a damaged header."""
    if packed.fileobj is not None:
        packed.fileobj.seek(packed.offset)
        if packed.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end of the archive")


def _write(source: IO[bytes], target: Path, budget: _Budget) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as to:
            while chunk := source.read(_CHUNK):
                budget.spend(len(chunk))
                to.write(chunk)
    except FileExistsError:
        raise UserError(f"{budget.uri}: holds a file of one name twice") from None


def _free(path: Path) -> Path:
    """Return a path, or one like it, where nothing is yet."""
    while path.exists():
        path = path.with_name(f"{path.name}-unpacked")
    return path


def _entered(folder: Path, class_names: tuple[str, ...]) -> Path:
    """Go down while there is nothing but one folder of no meaning of its own."""
    while True:
        walk = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        if len(walk) != 1 or not walk[0].is_dir():
            return folder
        (only,) = walk
        if only.name.lower() in SPLIT_FOLDERS or canonical_label(only.name, class_names):
            return folder
        folder = only
