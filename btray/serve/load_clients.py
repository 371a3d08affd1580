"""What a load test asks with: connections over HTTP/1.1 and gRPC that cost little themselves.

The HTTP one is asyncio's own transport and httptools, the parser of uvicorn, which Ray Serve
brings: measured 25 µs of a core a request where aiohttp's client takes 110, and client and server
often share the cores.
"""

import asyncio
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast
from urllib.parse import SplitResult, quote, urlsplit

import grpc
import httptools

from btray.errors import UserError
from btray.serve.proto.classifier_pb2 import ClassifyRequest, ClassifyResponse

CLASSIFY: Final = "/v1/classify"
_GRPC_METHOD: Final = "/btray.v1.Classifier/Classify"
_GRPC_PORT: Final = 9000
_GRPC_LASTING: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_GRPC_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for every channel
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
_PASSING: Final = frozenset({408, 425, 429})
"""Statuses below 500 with which the same request may be answered another time."""


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer."""

    reason: str
    """Short, to count by: the status and the server's code, or what happened to the connection."""
    message: str = ""
    """The server's own words."""
    lasting: bool = False
    """The same request would never be answered."""


class Connection(Protocol):
    """Asks one request after another; connects when it has to."""

    async def ask(self, image: int) -> Failure | None:
        """Ask about an image, by its number; a cancelled request ends the connection."""

    async def close(self) -> None:
        """Hang up."""


class Client(Protocol):
    """Makes connections to a server."""

    url: str
    images: int
    """How many different images its connections can ask about."""

    def connection(self) -> Connection:
        """Return a connection that is not connected yet."""


class HttpClient:
    """Asks `POST /v1/classify`, or the very path of the URL if it has one.

    Raises:
        UserError: not a URL of HTTP.

    """

    def __init__(
        self,
        url: str,
        images: Sequence[bytes],
        key: str | None = None,
        model: str | None = None,
        ca: Path | None = None,
    ) -> None:
        parts = _split(url, ("http", "https"), "http://127.0.0.1:8000")
        path = parts.path if parts.path not in ("", "/") else CLASSIFY
        query = "&".join(filter(None, (parts.query, model and f"model={quote(model)}")))
        resource = f"{path}?{query}" if query else path
        self.url, self.images = f"{parts.scheme}://{parts.netloc}{resource}", len(images)
        self.host, self.port = parts.hostname or "", parts.port or _default_port(parts.scheme)
        self.tls = _tls(ca) if parts.scheme == "https" else None
        self.requests = [_request(parts.netloc, resource, image, key) for image in images]

    def connection(self) -> "HttpConnection":
        """Return a connection that is not connected yet."""
        return HttpConnection(self)


class HttpConnection:
    """One keep-alive connection, one request at a time."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._exchange: _Exchange | None = None

    async def ask(self, image: int) -> Failure | None:
        """Send an image; `Client.images` says how many there are."""
        try:
            if self._exchange is None or self._exchange.closed:
                self._exchange = await self._connect()
            return await self._exchange.ask(self._client.requests[image])
        except OSError as error:
            return Failure(_connection_reason(error), str(error), lasting=_never_there(error))
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        """Hang up."""
        if self._exchange is not None:
            self._exchange.abort()
            self._exchange = None

    async def _connect(self) -> "_Exchange":
        client, loop = self._client, asyncio.get_running_loop()
        _, exchange = await loop.create_connection(
            _Exchange, client.host, client.port, ssl=client.tls
        )
        return exchange


class _Exchange(asyncio.Protocol):
    """Writes a request and collects its response."""

    def __init__(self) -> None:
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._answer: asyncio.Future[Failure | None] | None = None
        self._transport: asyncio.Transport

    async def ask(self, request: bytes) -> Failure | None:
        self._answer = self._loop.create_future()
        self._transport.write(request)
        return await self._answer

    def abort(self) -> None:
        self.closed = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(Failure("not HTTP", str(error), lasting=True))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._finish(Failure("connection reset" if exc else "connection closed"))

    # httptools calls these.

    def on_message_begin(self) -> None:
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # "100 Continue" and the like go before the response
            return
        if not self._parser.should_keep_alive():
            self.closed = True
            self._transport.close()
        self._finish(_judge(status, bytes(self._body)))

    def _finish(self, failure: Failure | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(failure)


class GrpcClient:
    """Asks `btray.v1.Classifier/Classify`.

    Raises:
        UserError: not HOST:PORT, with or without a scheme.

    """

    def __init__(
        self,
        url: str,
        images: Sequence[bytes],
        key: str | None = None,
        model: str | None = None,
        ca: Path | None = None,
    ) -> None:
        schemes = ("grpc", "grpcs", "http", "https")
        parts = _split(url if "://" in url else f"grpc://{url}", schemes, "127.0.0.1:9000")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self.target, self.images = f"{host}:{parts.port or _GRPC_PORT}", len(images)
        self.url = f"{self.target}{_GRPC_METHOD}"
        self.metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self.credentials = None
        if parts.scheme in ("grpcs", "https"):
            self.credentials = grpc.ssl_channel_credentials(_read_ca(ca) if ca else None)
        self.requests = [ClassifyRequest(image=image, model=model or "") for image in images]

    def connection(self) -> "GrpcConnection":
        """Return a connection that is not connected yet."""
        return GrpcConnection(self)


class GrpcConnection:
    """One channel."""

    def __init__(self, client: GrpcClient) -> None:
        self._client = client
        self._channel: grpc.aio.Channel | None = None

    async def ask(self, image: int) -> Failure | None:
        """Send an image; `Client.images` says how many there are."""
        if self._channel is None:
            self._channel = self._open()
            self._classify = self._channel.unary_unary(
                _GRPC_METHOD, ClassifyRequest.SerializeToString, ClassifyResponse.FromString
            )
        try:
            response = await self._classify(
                self._client.requests[image], metadata=self._client.metadata
            )
        except grpc.aio.AioRpcError as error:
            return _grpc_failure(error.code(), error.details() or "")
        if response.HasField("error"):
            return Failure(response.error.code, response.error.message, lasting=True)
        return None if response.class_name else Failure("not an answer", lasting=True)

    async def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def _open(self) -> grpc.aio.Channel:
        target, credentials = self._client.target, self._client.credentials
        if credentials is None:
            return grpc.aio.insecure_channel(target, _GRPC_OPTIONS)
        return grpc.aio.secure_channel(target, credentials, _GRPC_OPTIONS)


def _split(url: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    """Take a URL apart.

    Raises:
        UserError: it has another scheme, no host, or a port that cannot be.

    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"{url}: {error}; write it like {example}") from None
    if parts.scheme not in schemes or not parts.hostname:
        raise UserError(f"{url}: not the URL of a server; write it like {example}")
    if parts.username is not None:
        raise UserError(f"{parts.hostname}: a name or password in the URL; use --key")
    return parts


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _tls(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=_read_ca(ca).decode("ascii") if ca else None)
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise UserError(f"{ca}: not a certificate in PEM") from None


def _read_ca(ca: Path) -> bytes:
    try:
        return ca.read_bytes()
    except OSError as error:
        raise UserError(f"{ca}: cannot be read: {error.strerror}") from None


def _request(host: str, resource: str, image: bytes, key: str | None) -> bytes:
    """Return the bytes of a request of HTTP/1.1.

    Raises:
        UserError: the key cannot stand in a header.

    """
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UserError("--key: a key is printable ASCII")
    lines = [
        f"POST {resource} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: btray-bench",
        "Accept: application/json",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(image)}",
        *([f"Authorization: Bearer {key}"] if key else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + image


def _judge(status: int, body: bytes) -> Failure | None:
    """Return why a response is not an answer; None when it is one."""
    if status == 200:
        return None if b'"class"' in body else Failure("200 not an answer", lasting=True)
    code, message = _error_of(body)
    lasting = status < 500 and status not in _PASSING
    return Failure(f"{status} {code}".strip(), message or "no reason given", lasting)


def _error_of(body: bytes) -> tuple[str, str]:
    """Return code and message of an error in JSON; empty where it is something else."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"])[:40], str(error["message"])[:400]
    except (ValueError, KeyError, TypeError):
        return "", ""


def _grpc_failure(code: grpc.StatusCode, details: str) -> Failure:
    absent = code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in details
    return Failure(code.name, details, lasting=absent or code in _GRPC_LASTING)


def _connection_reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "connection reset"
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    return "no connection"


def _never_there(error: OSError) -> bool:
    """Tell that nothing listens there, not that a connection broke."""
    return not isinstance(error, ConnectionResetError | BrokenPipeError)
