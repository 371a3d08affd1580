"""The HTTP face: `/v1`, the Open Inference Protocol under `/v2`, the page and its documentation."""

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from importlib.resources import files
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from btray.serve import openapi, v2
from btray.serve.errors import ServeError
from btray.serve.front import FRONT_HEADER
from btray.serve.log import LOGGER, REQUEST_ID, event
from btray.serve.metrics_page import metrics_page
from btray.serve.openapi import SHORTEST_S
from btray.serve.service import Answered, Service
from btray.version import __version__

_T = TypeVar("_T")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CLASSIFY: Final = "/v1/classify"
OPEN_PATHS: Final = ("/v2/health/", "/web/")
"""Asked without a key: what is alive, and the page, which holds no data."""
_OPEN: Final = frozenset({"/", "/docs", "/openapi.json"})
_SECURE: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]
_IMAGES: Final = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types of a body that is one image; what it really is, its bytes say."""
_TIMEOUT: Final = "x-btray-timeout-seconds"
"""Ray Serve has a header of its own, which it answers in words of its own."""
_MAX_JSON: Final = 16 * 2**20
"""Longest JSON of an inference request, in bytes: it is read on the event loop."""


class Gate:
    """Goes before the application: ids, keys, sizes, headers, and one line of log a request."""

    def __init__(self, app: FastAPI, service: Service, tells_id: bool) -> None:
        self.app, self.service, self.tells_id = app, service, tells_id
        self._classify = _classify_handler(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, told = time.perf_counter(), _Told()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        told_id = [(b"x-request-id", request_id.encode())] if self.tells_id else []

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                told.status = message["status"]
                message["headers"] = [*message["headers"], *_SECURE, *told_id]
            await send(message)

        try:
            await self._admitted(scope, headers, receive, answer)
        except ServeError as error:
            told.code = error.code
            await _send_error(error, request_id, scope, receive, answer, told)
        except (asyncio.CancelledError, ClientDisconnect):
            told.code = "client_gone"
        except Exception:  # noqa: BLE001 - every fault is answered
            told.code = "internal"
            LOGGER.exception("request failed", extra={"btray_request_id": request_id})
            fault = ServeError("internal", "the server failed; the request id is in its log")
            await _send_error(fault, request_id, scope, receive, answer, told)
        finally:
            self._tell(scope, request_id, told, time.perf_counter() - begun)

    async def _admitted(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        self.service.check_front(_text(headers.get(FRONT_HEADER.encode())))
        path = _path(scope)
        if path in _OPEN or path.startswith(OPEN_PATHS):
            await self.app(scope, receive, send)
            return
        principal = self.service.identify(
            _text(headers.get(b"authorization")), _text(headers.get(b"x-api-key"))
        )
        scope["state"]["principal"] = principal.name
        self._check_size(headers)
        with self.service.admitted(principal):
            if path == CLASSIFY and scope["method"] == "POST":
                # Past the framework's routing and its middlewares: a tenth of the event loop.
                response = await self._classify(Request(scope, receive))
                await response(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    def _check_size(self, headers: dict[bytes, bytes]) -> None:
        length, limit = headers.get(b"content-length", b"0"), self.service.limits.body_bytes
        if length.isdigit() and int(length) > limit:
            raise ServeError(
                "too_large", f"a body of {int(length):,} bytes; the limit is {limit:,}"
            )

    def _tell(self, scope: Scope, request_id: str, told: "_Told", seconds: float) -> None:
        route = scope.get("route")
        path = CLASSIFY if _path(scope) == CLASSIFY else getattr(route, "path", "unknown")
        self.service.monitor.request("http", path, str(told.status), seconds)
        code = told.code or scope["state"].get("code")
        if code:
            self.service.monitor.error(code)
        event(
            "request",
            request_id=request_id,
            protocol="http",
            route=path,
            status=told.status,
            code=code,
            milliseconds=round(seconds * 1000, 2),
            principal=scope["state"].get("principal"),
        )


def _path(scope: Scope) -> str:
    """Return the path below the one where the application is mounted."""
    return str(scope["path"]).removeprefix(str(scope.get("root_path", "")))


class _Told:
    """What a request was answered."""

    status = 499
    code: str | None = None


async def _send_error(
    error: ServeError, request_id: str, scope: Scope, receive: Receive, send: Send, told: _Told
) -> None:
    if told.status == 499:  # no answer has begun
        await error_response(error, request_id, _path(scope))(scope, receive, send)


def error_response(error: ServeError, request_id: str, path: str) -> Response:
    """Return an error as the server shows it; under /v2 as the Open Inference Protocol has it."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.http_status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="btray"'
    if error.http_status == 413:
        headers["Connection"] = "close"  # the rest of the body is not read
    body: dict[str, object] = {"error": {"code": error.code, "message": str(error)}}
    if path == "/v2" or path.startswith("/v2/"):
        body = {"error": str(error), "code": error.code}
    body["request_id"] = request_id
    return JSONResponse(body, error.http_status, headers)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def build_app(service: Service, tells_id: bool = True) -> Gate:
    """Return the ASGI application of one replica.

    It adds the request's id to the headers, unless Ray Serve does so: not `tells_id`.
    """
    app = FastAPI(
        title="btray",
        version=__version__,
        description=openapi.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    _add_errors(app)
    _add_v1(app, service)
    _add_v2(app, service)
    _add_pages(app)
    return Gate(app, service, tells_id)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ServeError)
    async def _(request: Request, error: ServeError) -> Response:
        request.state.code = error.code
        return error_response(error, request.state.request_id, _path(request.scope))

    @app.exception_handler(v2.ProtocolError)
    async def _(request: Request, error: v2.ProtocolError) -> Response:
        told = ServeError.of_protocol(error)
        request.state.code = told.code
        return error_response(told, request.state.request_id, _path(request.scope))

    @app.exception_handler(Exception)
    async def _(request: Request, _error: Exception) -> Response:
        told = ServeError("internal", "the server failed; the request id is in its log")
        return error_response(told, request.state.request_id, _path(request.scope))

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        kinds = {404: "not_found", 405: "method_not_allowed"}
        told = ServeError(kinds.get(error.status_code, "invalid_request"), str(error.detail))
        request.state.code = told.code
        response = error_response(told, request.state.request_id, _path(request.scope))
        response.headers.update(error.headers or {})
        return response


def _classify_handler(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def classify(request: Request) -> Response:
        query = request.query_params
        explain = _explain_wanted(query.get("explain"))
        deadline = service.deadline(_seconds(request.headers.get(_TIMEOUT)))
        images, single = await in_time(_images(request, service), deadline)
        answered = await service.classify(
            images, query.get("model"), query.get("version"), deadline, explain
        )
        return _classified(answered, single, request.state.request_id)

    return classify


def _add_v1(app: FastAPI, service: Service) -> None:
    app.post(CLASSIFY, **openapi.CLASSIFY)(_classify_handler(service))

    @app.get("/v1/models", **openapi.MODELS)
    async def models() -> Response:
        rows = [
            {
                "name": model.name,
                "version": model.usual.version,
                "versions": list(model.versions),
                "classes": list(model.usual.card.class_names),
                "size": model.usual.card.image.size,
                "canary_percent": model.percent,
            }
            for model in service.models.names.values()
        ]
        return JSONResponse({"models": rows})


def _explain_wanted(value: str | None) -> bool:
    if value not in (None, "", "gradcam"):
        raise ServeError("invalid_request", f"explain={value[:40]!r}; there is explain=gradcam")
    return value == "gradcam"


def _seconds(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not SHORTEST_S <= seconds < float("inf"):
        raise ServeError(
            "invalid_request", f"{_TIMEOUT}: seconds, at least {SHORTEST_S}, not {value[:40]!r}"
        )
    return seconds


def _classified(answered: Answered, single: bool, request_id: str) -> Response:
    rows = [_row(answered, index) for index in range(len(answered.answers))]
    if not single:
        results = [{"index": index, **row} for index, row in enumerate(rows)]
        return JSONResponse({"request_id": request_id, "results": results})
    answer = answered.answers[0]
    if isinstance(answer, ServeError):
        raise answer
    return JSONResponse({"request_id": request_id, **rows[0]})


def _row(answered: Answered, index: int) -> dict[str, object]:
    row = answered.row(index)
    picture = answered.explanations[index]
    if picture is not None:
        encoded = base64.b64encode(picture).decode()
        row["explanation"] = {"method": "gradcam", "class": row["class"], "png": encoded}
    return row


async def in_time(work: Awaitable[_T], deadline: float) -> _T:
    """Return what something gives, or raise ServeError at the deadline (`time.monotonic`)."""
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await work
    except TimeoutError:
        message = "the request did not arrive in the time that was given"
        raise ServeError("deadline_exceeded", message) from None


async def body_of(request: Request, limit: int) -> bytes:
    """Read a body; raises ServeError once it is larger than the limit."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise ServeError("too_large", f"a body of more than {limit:,} bytes, the limit")
        parts.append(part)
    return b"".join(parts)


async def _images(request: Request, service: Service) -> tuple[list[bytes], bool]:
    """Return the encoded images of a request, and whether it is one alone."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _files(request, service), False
    if kind and not kind.startswith(_IMAGES):
        raise ServeError(
            "unsupported_media_type",
            f"{kind[:60]!r}: send the image itself (image/png …) or multipart/form-data",
        )
    return [await body_of(request, service.limits.body_bytes)], True


async def _files(request: Request, service: Service) -> list[bytes]:
    """Return the files of a form, kept in memory: images are not written to disk."""
    limits = service.limits
    body = await body_of(request, limits.body_bytes)

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, once(), max_files=limits.images, max_fields=32, max_part_size=65536
    )
    parser.spool_max_size = limits.body_bytes + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        kind = "too_large" if "Too many files" in error.message else "invalid_request"
        raise ServeError(kind, f"multipart/form-data: {error.message}") from None
    except (KeyError, ValueError) as error:
        raise ServeError("invalid_request", f"multipart/form-data: {error}") from None
    uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    contents = [await upload.read() for upload in uploads]
    await form.close()
    return contents


def _add_v2(app: FastAPI, service: Service) -> None:
    @app.get("/v2/health/live", **openapi.LIVE)
    async def live() -> Response:
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", **openapi.READY)
    async def ready() -> Response:
        if not service.models.names:
            raise ServeError("unavailable", "no model is loaded yet", retry_after_s=1)
        return JSONResponse({"ready": True})

    @app.get("/v2", **openapi.SERVER)
    async def server() -> Response:
        return JSONResponse(v2.server_metadata())

    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        _add_v2_model(app, service, prefix)


def _add_v2_model(app: FastAPI, service: Service, prefix: str) -> None:
    suffix = "_version" if "version}" in prefix else ""

    def named(request: Request) -> tuple[str, str | None]:
        return request.path_params["name"], request.path_params.get("version")

    @app.get(prefix, operation_id=f"model{suffix}", **openapi.model(prefix))
    async def metadata(request: Request) -> Response:
        name, version = named(request)
        model = service.models.model(name)
        source = model.choose(version, 100)
        versions = list(model.versions)
        return JSONResponse(v2.model_metadata(model.name, versions, source.card))

    @app.get(f"{prefix}/ready", operation_id=f"model_ready{suffix}", **openapi.ready(prefix))
    async def model_ready(request: Request) -> Response:
        name, version = named(request)
        model = service.models.model(name)
        source = model.choose(version, 100)
        return JSONResponse({"name": model.name, "version": source.version, "ready": True})

    @app.post(f"{prefix}/infer", operation_id=f"model_infer{suffix}", **openapi.infer(prefix))
    async def infer(request: Request) -> Response:
        name, version = named(request)
        deadline = service.deadline(_seconds(request.headers.get(_TIMEOUT)))
        body = await in_time(body_of(request, service.limits.body_bytes), deadline)
        length = request.headers.get(v2.HEADER_LENGTH)
        json_bytes = int(length) if length and length.isdecimal() else len(body)
        if min(json_bytes, len(body)) > _MAX_JSON:
            raise ServeError(
                "too_large", f"more than {_MAX_JSON:,} bytes of JSON; send tensors as binary data"
            )
        response = await service.infer(
            name, version, lambda size, most: v2.parse_http(body, length, size, most), deadline
        )
        encoded = v2.encode_http(response)
        return Response(encoded.content, headers=encoded.headers)


def _add_pages(app: FastAPI) -> None:
    web = files("btray.serve") / "web"

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response((web / "index.html").read_text("utf-8"), media_type="text/html")

    @app.get("/metrics", **openapi.METRICS)
    async def metrics() -> Response:
        page = await asyncio.to_thread(metrics_page)
        return Response(page, media_type="text/plain; version=0.0.4")

    @app.get("/openapi.json", include_in_schema=False)
    async def schema() -> Response:
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        return Response(openapi.page(app.openapi()), media_type="text/html")

    app.mount("/web", StaticFiles(directory=str(web)), name="web")
