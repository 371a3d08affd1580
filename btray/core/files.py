"""Folders and buckets behind one name: where things are, through pyarrow's file systems."""

from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from btray.errors import UserError


def resolve(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of a folder or URI and the path inside it.

    Raises:
        UserError: a URI pyarrow cannot parse or whose scheme it does not know, or a path
            no file can have.

    """
    if "://" not in uri:
        return pyarrow.fs.LocalFileSystem(), str(_local(uri))
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        detail = str(error).partition("\n")[0]
        raise UserError(f"{uri}: not a usable location: {detail}") from None
    return filesystem, path.rstrip("/")


def join(uri: str, name: str) -> str:
    """Return the folder or URI of something inside another; a URI's query stays last."""
    if "://" not in uri:
        return f"{uri.rstrip('/')}/{name}" if uri else name
    place, mark, query = uri.partition("?")
    return f"{_root_or(place)}/{name}{mark}{query}"


def split(uri: str) -> tuple[str, str]:
    """Return the folder or URI something is inside of, and its name: the reverse of `join`."""
    if "://" not in uri:
        path = _local(uri)
        return str(path.parent), path.name
    place, mark, query = uri.partition("?")
    parent, _, name = _root_or(place).rpartition("/")
    if not parent.rpartition(":")[2].strip("/"):
        parent += "/"  # of `s3://bucket` and `file:///name`
    return f"{parent}{mark}{query}", name


def absolute(uri: str) -> str:
    """Return the same place under a name that does not depend on the current folder."""
    return uri if "://" in uri else str(_local(uri))


def exists(uri: str) -> bool:
    """Say whether there is a file or folder; raises UserError if that cannot be told."""
    filesystem, path = resolve(uri)
    try:
        kind = filesystem.get_file_info(path).type
    except OSError as error:
        raise UserError(f"{uri}: cannot be looked at: {reason(error)}") from None
    return bool(kind != pyarrow.fs.FileType.NotFound)


def read(uri: str) -> bytes:
    """Return a file's bytes.

    Raises:
        FileNotFoundError: there is none.
        UserError: it cannot be read.

    """
    filesystem, path = resolve(uri)
    try:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(uri) from None
    except OSError as error:
        raise UserError(f"{uri}: cannot be read: {reason(error)}") from None


def _local(path: str) -> Path:
    if "\0" in path:
        raise UserError(f"{path!r}: not a usable location: no file has such a name")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise UserError(f"{path}: not a usable location: no such user") from None


def _root_or(place: str) -> str:
    """Leave out the slashes at the end, but for those without which a URI is none."""
    bare = place.rstrip("/")
    return place[:-1] if bare.endswith(":") else bare


def reason(error: OSError) -> str:
    """Return an operating system's error as one line."""
    return " ".join(str(error.strerror or error).split())
