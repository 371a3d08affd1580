"""Writing a data set so that it is there whole or not at all."""

import errno
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from btray.core import files
from btray.data.dataset import MANIFEST, QUARANTINE, ROWS, SCHEMA, Dataset, Manifest
from btray.data.sources.base import Rejected
from btray.errors import UserError

ROW_GROUP: Final = 512
"""Most rows of a row group."""
_PART_BYTES: Final = 96 * 1024 * 1024
_PARALLEL_PARTS: Final = 8
_PARALLEL_ROWS: Final = 800
"""From this many rows on there are _PARALLEL_PARTS files or more."""
_PART: Final = re.compile(r"part-([0-9a-f]{8}-)?\d{5}\.parquet")
_PARTIAL: Final = ".partial-"
_REPLACED: Final = ".replaced-"


@dataclass(frozen=True)
class Destination:
    """Where a data set is to be: a local folder or a URI."""

    uri: str
    filesystem: pyarrow.fs.FileSystem
    path: str
    local: bool

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Resolve a folder (links followed) or URI; raises UserError if unusable."""
        filesystem, path = files.resolve(uri)
        local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
        if not path or not uri.strip() or (not local and "/" not in path):
            raise UserError(f"{uri!r}: not a usable location: name a folder, or a path in a bucket")
        return cls(uri, filesystem, os.path.realpath(path) if local else path, local)

    def existing(self) -> Manifest | None:
        """Return the manifest of the data set that is there, or None if it is free.

        Raises:
            UserError: something else is there, or it cannot be looked at.

        """
        names = self._names()
        if not names:
            return None
        if not self.replaceable():
            strange = ", ".join(sorted(names - {MANIFEST, QUARANTINE, ROWS})[:3]) or ROWS
            raise UserError(
                f"{self.uri}: not free and not just a btray data set (holds {strange}); "
                "choose another destination"
            )
        if MANIFEST not in names:
            return None  # what an import to a bucket that was killed left: written over
        return Dataset.open(self.uri).manifest

    def replaceable(self) -> bool:
        """Say whether a data set, damaged or not, and nothing else is at the destination."""
        names = self._names()
        if not names <= {MANIFEST, QUARANTINE, ROWS}:
            return False
        return MANIFEST in names or (not self.local and self._ours(ROWS in names))

    def _ours(self, rows: bool) -> bool:
        """Say whether the folder of rows of a killed import holds such rows and nothing else."""
        if not rows:
            return True
        found = self.filesystem.get_file_info(pyarrow.fs.FileSelector(f"{self.path}/{ROWS}"))
        return all(_PART.fullmatch(entry.base_name) for entry in found)

    def _names(self) -> set[str]:
        try:
            kind = self.filesystem.get_file_info(self.path).type
            if kind == pyarrow.fs.FileType.NotFound:
                return set()
            if kind != pyarrow.fs.FileType.Directory:
                raise UserError(f"{self.uri}: is a file; choose a folder that does not exist yet")
            entries = self.filesystem.get_file_info(pyarrow.fs.FileSelector(self.path))
        except OSError as error:
            raise UserError(f"{self.uri}: cannot be looked at: {files.reason(error)}") from None
        return {entry.base_name for entry in entries}


@dataclass
class Staging:
    """A place to write a data set that becomes visible when all of it is written."""

    filesystem: pyarrow.fs.FileSystem
    path: str
    scratch: Path
    """Local folder for intermediate files, gone afterwards."""
    in_place: bool = False
    """Whether `path` is the destination itself and not a folder beside it."""
    begun: bool = False
    """Whether anything has been written yet."""
    written: set[str] = field(default_factory=set)
    """Names of the files with rows."""

    def write_rows(self, rows: pa.Table) -> None:
        """Write the rows [SCHEMA] as Parquet files of bounded size; to be called first."""
        self.begun = True
        # In place, two imports at once must not write into one another's files.
        owner = f"{secrets.token_hex(4)}-" if self.in_place else ""
        if self.in_place:
            _clear(self.filesystem, self.path)
        self.filesystem.create_dir(f"{self.path}/{ROWS}", recursive=True)
        per_part = rows_per_part(rows.num_rows, rows.nbytes)
        columns = [name for name in SCHEMA.names if name != "image"]
        compression = dict.fromkeys(columns, "zstd") | {"image": "none"}
        for number, start in enumerate(range(0, rows.num_rows, per_part)):
            name = f"part-{owner}{number:05d}.parquet"
            self.written.add(name)
            with pyarrow.parquet.ParquetWriter(
                f"{self.path}/{ROWS}/{name}",
                SCHEMA,
                filesystem=self.filesystem,
                compression=compression,
                use_dictionary=columns,
            ) as writer:
                writer.write_table(rows.slice(start, per_part), row_group_size=ROW_GROUP)

    def write_quarantine(self, rejected: Sequence[Rejected]) -> None:
        """Write the list of files that are not in the data set; raises as `write_manifest`."""
        if self.in_place:
            self._check_alone()
        lines = [json.dumps(vars(entry), ensure_ascii=False) + "\n" for entry in rejected]
        self._write(QUARANTINE, "".join(lines))

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest; to be called last.

        Raises:
            UserError: another import has written to the same place meanwhile.

        """
        if self.in_place:
            self._check_alone()
        self._write(MANIFEST, manifest.model_dump_json(indent=2) + "\n")

    def discard(self) -> None:
        """Remove what was written in place, and nothing of another import."""
        for name in self.written:
            with suppress(OSError):
                self.filesystem.delete_file(f"{self.path}/{ROWS}/{name}")
        if not self._rows():
            with suppress(OSError):
                self.filesystem.delete_dir(self.path)

    def _check_alone(self) -> None:
        if self._rows() != self.written:
            raise UserError(
                f"{self.path}: another import writes there at the same time; this one gave way; "
                "run it again when the other has ended"
            )

    def _rows(self) -> set[str]:
        selector = pyarrow.fs.FileSelector(f"{self.path}/{ROWS}", allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return {entry.base_name for entry in found if entry.type == pyarrow.fs.FileType.File}

    def _write(self, name: str, text: str) -> None:
        with self.filesystem.open_output_stream(f"{self.path}/{name}") as stream:
            stream.write(text.encode())


@contextmanager
def staged(destination: Destination) -> Iterator[Staging]:
    """Give a place to write to and publish it at the end; on any exception remove it.

    A local data set is written beside its place and renamed into it, replacing the
    data set that is there. At a URI it is written in place, the manifest last, after
    the old manifest and rows are removed.

    Raises:
        UserError: the place cannot be written.

    """
    try:
        stage = _staged_locally if destination.local else _staged_remotely
        with stage(destination) as staging:
            yield staging
    except OSError as error:
        raise UserError(
            f"{destination.uri}: cannot write the data set: {files.reason(error)}; "
            "check the path, its permissions and the free space"
        ) from None


@contextmanager
def _staged_locally(destination: Destination) -> Iterator[Staging]:
    final = Path(destination.path)
    made = [folder for folder in final.parents if not folder.exists()]
    partial = final.with_name(f".{final.name}{_PARTIAL}{_owner()}")
    scratch = partial / "scratch"
    try:
        scratch.mkdir(parents=True)
        _remove_stale(final)
        before = _identity(final)
        yield Staging(destination.filesystem, str(partial), scratch)
        shutil.rmtree(scratch)
        _publish(partial, final, before)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _publish(partial: Path, final: Path, before: int | None) -> None:
    """Rename the new data set into its place, where `before` must still be what it was."""
    if _identity(final) != before:
        raise _taken(final)
    if before is None:
        _put(partial, final)
        return
    replaced = final.with_name(f".{final.name}{_REPLACED}{_owner()}")
    final.rename(replaced)
    try:
        if _identity(replaced) != before:
            raise _taken(final)
        _put(partial, final)
    except BaseException:
        if not final.exists():
            replaced.rename(final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _identity(folder: Path) -> int | None:
    """Return what tells one folder from another that takes its place, or None without one."""
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def _put(partial: Path, final: Path) -> None:
    try:
        partial.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _taken(final) from None
        raise


def _taken(final: Path) -> UserError:
    return UserError(
        f"{final}: another import to the same place ended meanwhile; its data set is kept; "
        "choose another destination, or import again"
    )


def _remove_stale(final: Path) -> None:
    """Remove what dead imports to the same place left; put back a data set half replaced."""
    for path in final.parent.glob(f".{_escaped(final.name)}{_REPLACED}*"):
        if _dead(path) and not final.exists():
            path.rename(final)
        elif _dead(path):
            shutil.rmtree(path, ignore_errors=True)
    for path in final.parent.glob(f".{_escaped(final.name)}{_PARTIAL}*"):
        if _dead(path):
            shutil.rmtree(path, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _owner() -> str:
    """Return a name unique to this import that tells its process."""
    return f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"


def _dead(path: Path) -> bool:
    """Say whether the process that made a partial folder is known to be gone."""
    host_and_pid, _, _ = path.name.rpartition(".")
    host, _, pid = host_and_pid.rpartition(".")
    if not host.endswith(f"-{socket.gethostname()}") or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@contextmanager
def _staged_remotely(destination: Destination) -> Iterator[Staging]:
    with tempfile.TemporaryDirectory(prefix="btray-import-") as scratch:
        staging = Staging(destination.filesystem, destination.path, Path(scratch), in_place=True)
        try:
            yield staging
        except BaseException:
            if staging.begun:
                with suppress(OSError):
                    staging.discard()
            raise


def _clear(filesystem: pyarrow.fs.FileSystem, path: str) -> None:
    """Remove an earlier data set that is to be replaced in place, its manifest first."""
    with suppress(FileNotFoundError):
        filesystem.delete_file(f"{path}/{MANIFEST}")
    with suppress(FileNotFoundError):
        filesystem.delete_file(f"{path}/{QUARANTINE}")
    filesystem.delete_dir_contents(f"{path}/{ROWS}", missing_dir_ok=True)


def rows_per_part(rows: int, size: int) -> int:
    """Return how many rows a file gets, for so many rows and bytes in all."""
    parts = max(_PARALLEL_PARTS if rows >= _PARALLEL_ROWS else 1, -(-size // _PART_BYTES))
    return max(1, -(-rows // parts))
