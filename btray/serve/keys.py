"""API keys: a file of their hashes, and whom a key belongs to.

A key is 256 random bits, so its SHA-256 cannot be reversed by guessing: slow hashes are for
passwords, which people choose, and would cost every request their time.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, Field, ValidationError

from btray.config import Section
from btray.errors import UserError

KEY_PREFIX: Final = "btray_"
"""What every key starts with, so that scanners for leaked secrets can know one."""
CHECK_EVERY_S: Final = 1.0
"""Least time between two looks at whether the file has changed, in seconds."""

_LOGGER: Final = logging.getLogger("ray.serve")


class Limits(Section):
    """How much a principal may ask of one replica; null is no limit, or the server's."""

    requests_per_second: float | None = Field(default=None, gt=0)
    """Requests a second in the long run."""
    burst: int | None = Field(default=None, ge=1)
    """Requests at once after a pause; by default one second's worth, at least 1."""
    concurrency: int | None = Field(default=None, ge=1)
    """Requests in work at the same time."""


class KeyEntry(Limits):
    """What is kept of a key."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")
    """Whose it is; two entries of one name while one takes the other's place."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the key, in hexadecimal digits."""
    created: AwareDatetime
    """When it was made."""
    expires: AwareDatetime | None = None
    """From when on it is refused; null for never."""

    def valid_at(self, now: float) -> bool:
        """Say whether it has not expired at a time, in seconds since 1970."""
        return self.expires is None or now < self.expires.timestamp()


class KeyFile(Section):
    """All that stands in the file."""

    version: Literal[1] = 1
    """Version of this form."""
    keys: tuple[KeyEntry, ...] = ()
    """The keys, oldest first."""

    def find(self, key: str, now: float) -> KeyEntry | None:
        """Return the entry of a key valid at a time; every entry is compared, in equal time."""
        digest = _digest(key)
        found = None
        for entry in self.keys:
            if hmac.compare_digest(entry.sha256, digest) and entry.valid_at(now):
                found = entry
        return found


def read_keys(path: Path) -> KeyFile:
    """Return what a file of keys holds.

    Raises:
        UserError: it cannot be read, is not such a file, or others can read or change it.

    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot read the API keys: {error.strerror}") from None
    if mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise UserError(f"{path}: open to others (mode {mode & 0o777:o}); run chmod 600 on it")
    return _parse(path, text)


def _parse(path: Path, text: bytes) -> KeyFile:
    try:
        return KeyFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise UserError(f"{path}: not a file of API keys: {where}: {first['msg']}") from None


def create_key(
    path: Path, name: str, lifetime: timedelta | None = None, limits: Limits | None = None
) -> str:
    """Add a key, with its file if there is none, and return it: it is kept nowhere else.

    Raises:
        UserError: the name has a valid key or is no name, or the file cannot be used.

    """
    now = datetime.now(UTC)
    with _changing(path) as entries:
        if any(entry.name == name and entry.valid_at(now.timestamp()) for entry in entries):
            raise UserError(f"{path}: {name} has a key; `btray keys rotate` gives it a new one")
        entries[:] = [entry for entry in entries if entry.name != name]
        return _add(entries, name, now, lifetime, limits or Limits())


def revoke_key(path: Path, name: str) -> int:
    """Take all keys of a name away and return how many; raises UserError where there is none."""
    with _changing(path) as entries:
        kept = [entry for entry in entries if entry.name != name]
        revoked = len(entries) - len(kept)
        if not revoked:
            raise UserError(f"{path}: no key of the name {name}")
        entries[:] = kept
    return revoked


def rotate_key(path: Path, name: str, grace: timedelta, lifetime: timedelta | None = None) -> str:
    """Add a key with the limits of a name's newest one and return it.

    The former keys of the name are valid for `grace` longer, or until they expire by themselves.

    Raises:
        UserError: there is no such name, or the file cannot be used.

    """
    now = datetime.now(UTC)
    with _changing(path) as entries:
        former = [entry for entry in entries if entry.name == name]
        if not former:
            raise UserError(f"{path}: no key of the name {name}")
        entries[:] = [
            _ending(entry, now + grace) if entry.name == name else entry
            for entry in entries
            if entry.name != name or entry.valid_at(now.timestamp())
        ]
        limits = Limits(**former[-1].model_dump(include=set(Limits.model_fields)))
        return _add(entries, name, now, lifetime, limits)


def _ending(entry: KeyEntry, end: datetime) -> KeyEntry:
    end = end if entry.expires is None else min(end, entry.expires)
    return entry.model_copy(update={"expires": end})


def _add(
    entries: list[KeyEntry], name: str, now: datetime, lifetime: timedelta | None, limits: Limits
) -> str:
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    try:
        entry = KeyEntry(
            name=name,
            sha256=_digest(key),
            created=now,
            expires=None if lifetime is None else now + lifetime,
            **limits.model_dump(),
        )
    except ValidationError:
        raise UserError(
            f"{name!r}: a name has 1 to 64 letters, digits and . _ @ -, a letter or digit first"
        ) from None
    entries.append(entry)
    return key


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


@contextmanager
def _changing(path: Path) -> Iterator[list[KeyEntry]]:
    """Give the entries to change and write them back, with other writers kept out."""
    with _locked(path.absolute().parent):
        entries = list(read_keys(path).keys) if path.exists() else []
        yield entries
        write_keys(path, entries)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{folder}: cannot keep API keys there: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_keys(path: Path, entries: Sequence[KeyEntry]) -> None:
    """Put a file with mode 600 in place of the one there, all at once.

    Raises:
        UserError: it cannot be written.

    """
    text = json.dumps(KeyFile(keys=tuple(entries)).model_dump(mode="json"), indent=2) + "\n"
    path = path.resolve()
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot write the API keys: {error.strerror}") from None


class KeyRing:
    """The keys in force: those of the file, read again when it changes.

    A changed file that cannot be used leaves the keys before it in force and is reported in the
    log, once.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock = path, clock
        self._lock = threading.Lock()
        self._seen, self._checked = _signature(path), clock()
        self._keys = read_keys(path)

    def find(self, key: str, now: float) -> KeyEntry | None:
        """Return whose a key is, if it is valid at a time in seconds since 1970."""
        self._refresh()
        return self._keys.find(key, now)

    def _refresh(self) -> None:
        with self._lock:
            if self._clock() - self._checked < CHECK_EVERY_S:
                return
            self._checked = self._clock()
            seen = _signature(self.path)
            if seen == self._seen:
                return
            self._seen = seen
            self._read()

    def _read(self) -> None:
        try:
            self._keys = read_keys(self.path)
        except UserError as error:
            _LOGGER.error("the API keys before stay in force: %s", error)
        else:
            _LOGGER.info("%d API keys read again", len(self._keys.keys))


def _signature(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file does; None where it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode)
