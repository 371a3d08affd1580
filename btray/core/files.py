"""Folders and buckets behind one name: where things are, through pyarrow's file systems."""

from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from btray.errors import UserError


def resolve(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of a folder or URI and the path inside it.

    Raises:
        UserError: a URI pyarrow cannot parse or whose scheme it does not know.

    """
    if "://" not in uri:
        return pyarrow.fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{uri}: not a usable location: {error}") from None
    return filesystem, path.rstrip("/")


def join(uri: str, name: str) -> str:
    """Return the folder or URI of something inside another; a URI's query stays last."""
    place, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def split(uri: str) -> tuple[str, str]:
    """Return the folder or URI something is inside of, and its name: the reverse of `join`."""
    if "://" not in uri:
        path = Path(uri).expanduser().absolute()
        return str(path.parent), path.name
    place, mark, query = uri.partition("?")
    parent, _, name = place.rstrip("/").rpartition("/")
    return f"{parent}{mark}{query}", name


def absolute(uri: str) -> str:
    """Return the same place under a name that does not depend on the current folder."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


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


def reason(error: OSError) -> str:
    """Return an operating system's error as one line."""
    return " ".join(str(error.strerror or error).split())
