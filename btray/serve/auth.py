"""Who may ask, and how much: the same for HTTP headers and gRPC metadata."""

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from btray.config import Section
from btray.errors import UserError
from btray.serve.keys import KEY_PREFIX, KeyEntry, KeyRing, Limits
from btray.serve.tokens import InvalidToken, KeySet, TokenVerifier, Trust

MAX_CREDENTIAL: Final = 16384
"""Longest key or token that is looked at, in characters."""

_INVALID: Final = "the API key or token is not valid"
_MISSING: Final = "an API key or token is needed: Authorization: Bearer ..., or X-API-Key: ..."


class AuthConfig(Section):
    """Who may ask; with neither keys nor tokens anyone may, and the server stays on loopback."""

    keys_file: str | None = None
    """File of API keys that `btray keys create` makes."""
    jwks: str | None = None
    """Public keys of the provider of tokens (JSON Web Key Set): a file, https:// or http://."""
    issuer: str | None = Field(default=None, min_length=1)
    """Claim `iss` that tokens must have, to the letter; needed with `jwks`."""
    audience: str | None = Field(default=None, min_length=1)
    """Claim `aud` that tokens must have; needed with `jwks`."""
    scope: str | None = Field(default=None, min_length=1)
    """Scope or role that tokens must have, in `scope`, `scp` or `roles`; null asks for none."""
    limits: Limits = Limits()
    """What one principal may ask of one replica where its key says nothing else."""
    principals: int = Field(default=10_000, ge=1)
    """Principals whose use is remembered; the one longest unseen is forgotten first."""

    @field_validator("keys_file", "jwks")
    @classmethod
    def _anywhere(cls, path: str | None) -> str | None:
        """Make paths absolute: replicas have another working folder."""
        return path if path is None or "://" in path else str(Path(path).absolute())

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.jwks is not None and (self.issuer is None or self.audience is None):
            raise ValueError("jwks needs issuer and audience, or any token of its keys would do")
        if self.jwks is None and (self.issuer or self.audience or self.scope):
            raise ValueError("issuer, audience and scope are of tokens; they need jwks")
        return self

    @property
    def required(self) -> bool:
        """Whether a request needs a key or token."""
        return self.keys_file is not None or self.jwks is not None


def require_auth_for(host: str, config: AuthConfig) -> None:
    """Raise UserError where anyone on the network could ask."""
    if not config.required and not _is_loopback(host):
        raise UserError(
            f"--host {host} opens btray to the network: give --keys FILE "
            "(`btray keys create` makes it) or auth.jwks"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Principal:
    """Who asks."""

    name: str
    """Of the key, or the subject of the token."""
    kind: Literal["anonymous", "key", "token"]
    """How that was shown."""
    limits: Limits = field(default=Limits(), compare=False)
    """What is allowed, where it differs from the server's limits."""


ANONYMOUS: Final = Principal("anonymous", "anonymous")
"""Everyone, where no key or token is needed."""


class Refused(Exception):  # noqa: N818 - an answer, not an error of ours
    """A request that is not answered; its text is for who asked and says nothing of others."""

    def __init__(
        self,
        status: Literal["unauthenticated", "forbidden", "rate", "concurrency"],
        message: str,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after_s = status, message, retry_after_s


@dataclass
class _Use:
    """What a principal has used: tokens of its bucket left at a time, requests in work."""

    tokens: float
    stamp: float
    ongoing: int = 0


class Authenticator:
    """Knows keys and tokens, and counts; one a replica, for all its threads."""

    def __init__(self, config: AuthConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """Read keys; raises UserError for what cannot be read."""
        self._config, self._clock = config, clock
        self._ring = None if config.keys_file is None else KeyRing(Path(config.keys_file), clock)
        self._verifier = _verifier(config, clock)
        self._lock = threading.Lock()
        self._uses: OrderedDict[tuple[str, str], _Use] = OrderedDict()

    def authenticate(self, authorization: str | None, api_key: str | None, now: float) -> Principal:
        """Return who asks, from `Authorization` and `X-API-Key`, at a time in seconds since 1970.

        Where both are given, `X-API-Key` counts.

        Raises:
            Refused: `unauthenticated` or `forbidden`.

        """
        if not self._config.required:
            return ANONYMOUS
        credential = api_key or _bearer(authorization)
        if credential is None:
            raise Refused("unauthenticated", _MISSING)
        if len(credential) > MAX_CREDENTIAL:
            raise Refused("unauthenticated", _INVALID)
        if credential.startswith(KEY_PREFIX):
            return self._of_key(credential, now)
        return self._of_token(credential, now)

    def _of_key(self, key: str, now: float) -> Principal:
        entry = None if self._ring is None else self._ring.find(key, now)
        if entry is None:
            raise Refused("unauthenticated", _INVALID)
        return Principal(entry.name, "key", _limits(entry))

    def _of_token(self, token: str, now: float) -> Principal:
        if self._verifier is None:
            raise Refused("unauthenticated", _INVALID)
        try:
            return Principal(self._verifier.subject(token, now), "token")
        except InvalidToken as error:
            raise Refused(
                "forbidden" if error.forbidden else "unauthenticated", str(error)
            ) from None

    def charge(self, principal: Principal) -> None:
        """Count one more request of a stream; raises Refused (`rate`)."""
        limits = self._effective(principal.limits)
        if limits.requests_per_second is not None:
            with self._lock:
                now = self._clock()
                use = self._use((principal.kind, principal.name), _burst(limits), now)
                _take(use, limits.requests_per_second, _burst(limits), now)

    @contextmanager
    def admit(self, principal: Principal) -> Iterator[None]:
        """Count a request as long as it is in work.

        Raises:
            Refused: `rate` or `concurrency`, with the time to wait; what is refused for its
                concurrency does not count towards the rate.

        """
        key = (principal.kind, principal.name)
        with self._lock:
            use = self._enter(key, self._effective(principal.limits))
        try:
            yield
        finally:
            with self._lock:
                use.ongoing -= 1

    def _effective(self, own: Limits) -> Limits:
        """Return limits with what they leave open taken from the server's."""
        given = own.model_dump(exclude_none=True)
        if "requests_per_second" in given:
            given.setdefault("burst", _burst(own))  # not the burst of another rate
        return self._config.limits.model_copy(update=given)

    def _enter(self, key: tuple[str, str], limits: Limits) -> _Use:
        now = self._clock()
        use = self._use(key, _burst(limits), now)
        if limits.concurrency is not None and use.ongoing >= limits.concurrency:
            raise Refused("concurrency", "too many requests at the same time", 1.0)
        if limits.requests_per_second is not None:
            _take(use, limits.requests_per_second, _burst(limits), now)
        use.ongoing += 1
        return use

    def _use(self, key: tuple[str, str], burst: int, now: float) -> _Use:
        use = self._uses.get(key)
        if use is None:
            self._forget()
            use = self._uses[key] = _Use(tokens=burst, stamp=now)
        self._uses.move_to_end(key)
        return use

    def _forget(self) -> None:
        """Make room for one more, at the cost of those unseen for longest and idle."""
        spare = len(self._uses) - self._config.principals + 1
        if spare > 0:
            idle = (key for key, use in self._uses.items() if use.ongoing == 0)
            for key in list(islice(idle, spare)):
                del self._uses[key]


def _verifier(config: AuthConfig, clock: Callable[[], float]) -> TokenVerifier | None:
    if config.jwks is None or config.issuer is None or config.audience is None:
        return None
    trust = Trust(config.issuer, config.audience, config.scope)
    return TokenVerifier(KeySet(config.jwks, clock), trust)


def _bearer(authorization: str | None) -> str | None:
    """Return what follows `Bearer`, None for another scheme."""
    scheme, _, credential = (authorization or "").strip().partition(" ")
    return (credential.strip() or None) if scheme.lower() == "bearer" else None


def _limits(entry: KeyEntry) -> Limits:
    return Limits(**entry.model_dump(include=set(Limits.model_fields)))


def _burst(limits: Limits) -> int:
    return limits.burst or max(1, math.ceil(limits.requests_per_second or 1))


def _take(use: _Use, rate: float, burst: int, now: float) -> None:
    """Take one from a token bucket; raises Refused with the time until there is one."""
    use.tokens = min(float(burst), use.tokens + (now - use.stamp) * rate)
    use.stamp = now
    if use.tokens < 1:
        raise Refused("rate", "too many requests", (1 - use.tokens) / rate)
    use.tokens -= 1
