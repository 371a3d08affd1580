"""Bearer tokens of an identity provider: JSON Web Tokens, as OpenID Connect gives them."""

import http.client
import json
import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import jwt

from btray.errors import UserError

LEEWAY_S: Final = 30.0
"""How far the clocks of the provider and the server may differ, in seconds."""
REFRESH_EVERY_S: Final = 30.0
"""Least time between two looks for the provider's new keys, in seconds."""
MAX_AGE_S: Final = 300.0
"""Age of the provider's keys from which on they are looked for again, in seconds."""
FETCH_TIMEOUT_S: Final = 5.0
"""Longest wait for the provider's keys, in seconds."""
MAX_JWKS_BYTES: Final = 2**20
"""Largest set of keys that is read, in bytes."""

_ALGORITHMS: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""Signatures by type of key; those with a shared secret (HS256 …) and `none` are not among them."""
_MALFORMED: Final = (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError)
"""What reading a token from a stranger may raise: its JSON can be nested or huge."""
_LOGGER: Final = logging.getLogger("ray.serve")


class InvalidToken(Exception):  # noqa: N818 - it is the token that is wrong
    """A token that proves nothing; `forbidden` when it does, but allows too little."""

    def __init__(self, message: str, forbidden: bool = False) -> None:
        super().__init__(message)
        self.forbidden = forbidden


@dataclass(frozen=True)
class Trust:
    """Which tokens are believed."""

    issuer: str
    """The claim `iss`, to the letter."""
    audience: str
    """One of the claim `aud`."""
    scope: str | None = None
    """One of `scope`, `scp` or `roles`; None asks for none."""


@dataclass(frozen=True)
class Signer:
    """A public key of the provider."""

    identifier: str | None
    """What a token's `kid` names it by."""
    key: Any
    """The key itself, of `cryptography`."""
    algorithms: tuple[str, ...]
    """Signatures it may have made: its own kind's, whatever a token asks for."""


Run = Callable[[Callable[[], None]], object]
"""Does something, now or in the background."""


def in_background(task: Callable[[], None]) -> None:
    """Do something in a thread that does not keep the process alive."""
    threading.Thread(target=task, name="btray-jwks", daemon=True).start()


class KeySet:
    """The provider's public keys, from a file or URL, looked for again now and then.

    A request never waits for the provider: keys are fetched in the background. While it is away
    the keys known last stay in use.
    """

    def __init__(
        self,
        source: str,
        clock: Callable[[], float] = time.monotonic,
        run: Run = in_background,
    ) -> None:
        """Fetch the keys; raises UserError when there are none to be had."""
        self._source, self._clock, self._run = source, clock, run
        self._lock = threading.Lock()
        self._keys = fetch_keys(source)
        self._tried = clock()

    def find(self, identifier: str | None) -> Signer | None:
        """Return the key of an identifier, or the only one where a token names none."""
        age = self._clock() - self._tried
        if age >= MAX_AGE_S or (age >= REFRESH_EVERY_S and self._known(identifier) is None):
            self._refresh_once()
        return self._known(identifier)

    def _known(self, identifier: str | None) -> Signer | None:
        keys = self._keys
        if identifier is None:
            return keys[0] if len(keys) == 1 else None
        return next((key for key in keys if key.identifier == identifier), None)

    def _refresh_once(self) -> None:
        with self._lock:
            if self._clock() - self._tried < REFRESH_EVERY_S:
                return
            self._tried = self._clock()
        self._run(self._refresh)

    def _refresh(self) -> None:
        try:
            self._keys = fetch_keys(self._source)
        except UserError as error:
            _LOGGER.error("the token keys before stay in use: %s", error)


def fetch_keys(source: str) -> tuple[Signer, ...]:
    """Return the public keys for signatures in a JSON Web Key Set.

    Raises:
        UserError: the file or URL cannot be read, or holds no such keys.

    """
    try:
        found = json.loads(_read(source))["keys"]
        keys = [_signer(one) for one in found if isinstance(one, dict)]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise UserError(f"{source}: not a JSON Web Key Set") from None
    usable = tuple(key for key in keys if key is not None)
    if not usable:
        raise UserError(f"{source}: no public key for signatures (RSA, EC or Ed25519) in it")
    return usable


def _signer(raw: Mapping[str, Any]) -> Signer | None:
    """Return a key of a set; None for one that is not for signatures, or unknown here."""
    named = raw.get("alg")
    allowed = [name for name in _ALGORITHMS.get(raw.get("kty", ""), ()) if named in (None, name)]
    if not allowed or "d" in raw or raw.get("use") not in (None, "sig"):
        return None
    try:
        key = jwt.PyJWK(dict(raw))
    except _MALFORMED:
        return None
    return Signer(key.key_id, key.key, tuple(allowed))


def _read(source: str) -> bytes:
    """Return the bytes of a file or an http(s) URL; raises UserError."""
    if "://" not in source:
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise UserError(f"{source}: cannot read the token keys: {error.strerror}") from None
    if urlsplit(source).scheme not in ("http", "https"):
        raise UserError(f"{source}: token keys come from a file, https:// or http://")
    try:
        with urllib.request.urlopen(source, timeout=FETCH_TIMEOUT_S) as reply:  # noqa: S310
            body: bytes = reply.read(MAX_JWKS_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{source}: cannot fetch the token keys: {error}") from None
    if len(body) > MAX_JWKS_BYTES:
        raise UserError(f"{source}: more than {MAX_JWKS_BYTES} bytes are no set of token keys")
    return body


class TokenVerifier:
    """Says who a token stands for."""

    def __init__(self, keys: KeySet, trust: Trust) -> None:
        self._keys, self._trust = keys, trust
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})

    def subject(self, token: str, now: float) -> str:
        """Return the claim `sub` of a token valid at a time, in seconds since 1970.

        Raises:
            InvalidToken: not a token, not signed by the issuer, expired, not for this server, or
                without the scope.

        """
        claims = self._claims(token)
        _check_times(claims, now)
        if self._trust.scope is not None and self._trust.scope not in _scopes(claims):
            raise InvalidToken(f"the token lacks the scope {self._trust.scope}", forbidden=True)
        subject = claims["sub"]
        if not isinstance(subject, str) or not subject.isprintable() or len(subject) > 256:
            raise InvalidToken("the token has no usable subject")
        return subject

    def _claims(self, token: str) -> dict[str, Any]:
        """Return what a token of the issuer for this audience says; times are not looked at."""
        try:
            key = self._signer_of(jwt.get_unverified_header(token))
            return self._jwt.decode(
                token,
                key=key.key,
                algorithms=key.algorithms,
                issuer=self._trust.issuer,
                audience=self._trust.audience,
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidAudienceError:
            raise InvalidToken("the token is for another audience") from None
        except jwt.InvalidIssuerError:
            raise InvalidToken("the token has another issuer") from None
        except _MALFORMED:
            raise InvalidToken("the API key or token is not valid") from None

    def _signer_of(self, header: Mapping[str, Any]) -> Signer:
        identifier = header.get("kid")
        if identifier is not None and not isinstance(identifier, str):
            raise InvalidToken("the API key or token is not valid")
        key = self._keys.find(identifier)
        if key is None:
            raise InvalidToken("the API key or token is not valid")
        return key


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    """Raise InvalidToken before `nbf` and after `exp`, with some leeway."""
    begin, end = claims.get("nbf", now), claims["exp"]
    if not all(isinstance(t, int | float) for t in (begin, end)):
        raise InvalidToken("the token's times are not numbers")
    if now < begin - LEEWAY_S:
        raise InvalidToken("the token is not valid yet")
    if not now < end + LEEWAY_S:
        raise InvalidToken("the token has expired")


def _scopes(claims: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    for name in ("scope", "scp", "roles"):
        value = claims.get(name, ())
        values = value.split() if isinstance(value, str) else value
        if isinstance(values, list):
            found.update(one for one in values if isinstance(one, str))
    return found
