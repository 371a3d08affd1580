"""Names of patients, studies and series replaced by keyed hashes."""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from btray.errors import UserError

KEY_VARIABLE: Final = "BTRAY_PSEUDONYM_KEY"
_SHORTEST_KEY: Final = 16
_DIGITS: Final = 32


@dataclass(frozen=True)
class Pseudonyms:
    """HMAC-SHA256 (RFC 2104) under one key: without the key, nobody can test a guessed name."""

    key: bytes = field(repr=False)
    given: bool = True
    """False when the key was drawn at random."""

    @classmethod
    def load(cls, key_file: str | None = None) -> Self:
        """Take the key from a file, else from `BTRAY_PSEUDONYM_KEY`, else draw one at random.

        A key drawn at random is thrown away with this object: another import then gives
        the same patient another pseudonym.

        Raises:
            UserError: the file cannot be read, or the key is shorter than 16 bytes.

        """
        if key_file is not None:
            return cls(_long_enough(_read(key_file), key_file))
        text = os.environ.get(KEY_VARIABLE)
        if text is not None:
            return cls(_long_enough(text.encode(), KEY_VARIABLE))
        return cls(secrets.token_bytes(32), given=False)

    @property
    def trace(self) -> str | None:
        """What tells one given key from another, and nothing else about it."""
        return self("key", "") if self.given else None

    def __call__(self, kind: str, identifier: str) -> str:
        """Return the pseudonym, 32 hexadecimal digits, of one kind's identifier."""
        message = f"{kind}\0{identifier}".encode("utf-8", "surrogateescape")
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:_DIGITS]


def _read(key_file: str) -> bytes:
    try:
        return Path(key_file).read_bytes().strip()
    except OSError as error:
        raise UserError(f"{key_file}: the key cannot be read: {error.strerror}") from None


def _long_enough(key: bytes, origin: str) -> bytes:
    if len(key) < _SHORTEST_KEY:
        raise UserError(
            f"{origin}: a key of {len(key)} bytes can be guessed; give {_SHORTEST_KEY} or more, "
            "such as `openssl rand -hex 32` prints"
        )
    return key
