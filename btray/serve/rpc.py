"""The gRPC face: Open Inference Protocol v2, gRPC health, and btray's own service.

The methods have the names of the services, so that Ray Serve finds them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from btray.serve import v2
from btray.serve.auth import Principal
from btray.serve.errors import ServeError
from btray.serve.front import FRONT_HEADER
from btray.serve.log import LOGGER, REQUEST_ID, event
from btray.serve.proto import classifier_pb2, inference_pb2
from btray.serve.service import Answered, Service

_SERVICES: Final = frozenset({"", "inference.GRPCInferenceService", "btray.v1.Classifier"})
_WATCH_S: Final = 1.0
_WATCHERS: Final = 16
"""Watchers of a replica's health at a time: each holds a request's place, and needs no key."""
_WATCH_LONGEST_S: Final = 300.0
_Answer = TypeVar("_Answer", bound=Message)


class Context(Protocol):
    """What Ray Serve gives of a call (`RayServegRPCContext`)."""

    def invocation_metadata(self) -> list[tuple[str, str]]: ...  # noqa: D102
    def set_code(self, code: grpc.StatusCode) -> None: ...  # noqa: D102
    def set_details(self, details: str) -> None: ...  # noqa: D102
    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None: ...  # noqa: D102


class Rpc:
    """The methods of all gRPC services, over a `Service`."""

    service: Service
    _watchers = 0

    async def ServerLive(  # noqa: N802, D102 - the protocol's name
        self, _: inference_pb2.ServerLiveRequest, grpc_context: Context
    ) -> inference_pb2.ServerLiveResponse:
        live = self._is_at_front(grpc_context)
        return inference_pb2.ServerLiveResponse(live=live)

    async def ServerReady(  # noqa: N802, D102
        self, _: inference_pb2.ServerReadyRequest, grpc_context: Context
    ) -> inference_pb2.ServerReadyResponse:
        ready = self._is_at_front(grpc_context) and self._ready
        return inference_pb2.ServerReadyResponse(ready=ready)

    async def ServerMetadata(  # noqa: N802, D102
        self, _: inference_pb2.ServerMetadataRequest, grpc_context: Context
    ) -> inference_pb2.ServerMetadataResponse:
        known = self._is_at_front(grpc_context)
        return v2.server_metadata_message() if known else inference_pb2.ServerMetadataResponse()

    async def ModelReady(  # noqa: N802, D102
        self, request: inference_pb2.ModelReadyRequest, grpc_context: Context
    ) -> inference_pb2.ModelReadyResponse:
        async def work() -> inference_pb2.ModelReadyResponse:
            self.service.models.model(request.name).choose(request.version, 100)
            return inference_pb2.ModelReadyResponse(ready=True)

        empty = inference_pb2.ModelReadyResponse()
        return await self._unary(grpc_context, "ModelReady", empty, work)

    async def ModelMetadata(  # noqa: N802, D102
        self, request: inference_pb2.ModelMetadataRequest, grpc_context: Context
    ) -> inference_pb2.ModelMetadataResponse:
        async def work() -> inference_pb2.ModelMetadataResponse:
            model = self.service.models.model(request.name)
            source = model.choose(request.version, 100)
            return v2.model_metadata_message(model.name, list(model.versions), source.card)

        empty = inference_pb2.ModelMetadataResponse()
        return await self._unary(grpc_context, "ModelMetadata", empty, work)

    async def ModelInfer(  # noqa: N802, D102
        self, request: inference_pb2.ModelInferRequest, grpc_context: Context
    ) -> inference_pb2.ModelInferResponse:
        async def work() -> inference_pb2.ModelInferResponse:
            self._check_size(request)
            response = await self.service.infer(
                request.model_name,
                request.model_version,
                lambda size, most: v2.parse_message(request, size, most),
                self.service.deadline(None),
            )
            return v2.encode_message(response)

        empty = inference_pb2.ModelInferResponse()
        return await self._unary(grpc_context, "ModelInfer", empty, work)

    async def Check(  # noqa: N802, D102
        self, request: health_pb2.HealthCheckRequest, grpc_context: Context
    ) -> health_pb2.HealthCheckResponse:
        if not self._is_at_front(grpc_context):
            return health_pb2.HealthCheckResponse()
        if request.service not in _SERVICES:
            _refuse(grpc_context, ServeError("not_found", "no such service"), None)
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=self._health())

    async def Watch(  # noqa: N802, D102
        self, request: health_pb2.HealthCheckRequest, grpc_context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        if not self._is_at_front(grpc_context):
            return
        if self._watchers >= _WATCHERS:
            _refuse(grpc_context, ServeError("too_many_requests", "too many watch", 30), None)
            return
        self._watchers += 1
        try:
            async for status in self._statuses(request.service):
                yield health_pb2.HealthCheckResponse(status=status)
        finally:
            self._watchers -= 1
        # A stream holds a request's place: a watcher asks anew, as after any lost connection.
        _refuse(grpc_context, ServeError("unavailable", "watched long enough; watch again"), None)

    async def _statuses(self, service: str) -> AsyncIterator[Any]:
        """Yield a service's status at first, and whenever it changes."""
        last, end = None, time.monotonic() + _WATCH_LONGEST_S
        while time.monotonic() < end:
            known = service in _SERVICES
            status = self._health() if known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                last = status
                yield status
            await asyncio.sleep(_WATCH_S)

    async def Classify(  # noqa: N802, D102
        self, request: classifier_pb2.ClassifyRequest, grpc_context: Context
    ) -> classifier_pb2.ClassifyResponse:
        async def work() -> classifier_pb2.ClassifyResponse:
            return await self._classified(request, _request_id(grpc_context, request.request_id))

        empty = classifier_pb2.ClassifyResponse()
        return await self._unary(grpc_context, "Classify", empty, work)

    async def ClassifySeries(  # noqa: N802, D102
        self, request: classifier_pb2.ClassifySeriesRequest, grpc_context: Context
    ) -> AsyncIterator[classifier_pb2.ClassifyResponse]:
        request_id = _request_id(grpc_context, request.request_id)

        async def work(_: Principal) -> AsyncIterator[classifier_pb2.ClassifyResponse]:
            self._check_size(request)
            answered = await self.service.classify(
                list(request.images),
                request.model,
                request.version,
                self.service.deadline(None),
                request.explain,
            )
            for index in range(len(answered.answers)):
                yield _message(answered, index, request_id)

        async for message in self._stream(grpc_context, "ClassifySeries", work):
            yield message

    async def ClassifyStream(  # noqa: N802, D102
        self, requests: AsyncIterator[classifier_pb2.ClassifyRequest], grpc_context: Context
    ) -> AsyncIterator[classifier_pb2.ClassifyResponse]:
        async def work(principal: Principal) -> AsyncIterator[classifier_pb2.ClassifyResponse]:
            index = 0
            async for request in requests:
                request_id = _request_id(grpc_context, request.request_id)
                if index:  # the first is counted with the stream
                    self.service.charge(principal)
                try:
                    message = await self._classified(request, request_id)
                except ServeError as error:
                    if error.http_status >= 500:
                        raise
                    message = classifier_pb2.ClassifyResponse(
                        request_id=request_id, error={"code": error.code, "message": str(error)}
                    )
                message.index = index
                index += 1
                yield message

        async for message in self._stream(grpc_context, "ClassifyStream", work):
            yield message

    def _is_at_front(self, context: Context) -> bool:
        """Whether a call that needs no key came through the data plane; refuses it otherwise."""
        try:
            self.service.check_front(dict(context.invocation_metadata()).get(FRONT_HEADER))
        except ServeError as error:
            _refuse(context, error, None)
            return False
        return True

    @property
    def _ready(self) -> bool:
        return bool(self.service.models.names)

    def _health(self) -> Any:  # noqa: ANN401 - a value of an enumeration of protobuf
        statuses = health_pb2.HealthCheckResponse
        return statuses.SERVING if self._ready else statuses.NOT_SERVING

    def _check_size(self, request: Message) -> None:
        limit = self.service.limits.body_bytes
        if request.ByteSize() > limit:
            raise ServeError("too_large", f"a message of more than {limit:,} bytes, the limit")

    async def _classified(
        self, request: classifier_pb2.ClassifyRequest, request_id: str
    ) -> classifier_pb2.ClassifyResponse:
        answered = await self.service.classify(
            [request.image],
            request.model,
            request.version,
            self.service.deadline(None),
            request.explain,
        )
        answer = answered.answers[0]
        if isinstance(answer, ServeError):
            raise answer
        return _message(answered, 0, request_id)

    async def _unary(
        self,
        context: Context,
        method: str,
        empty: _Answer,
        work: Callable[[], Awaitable[_Answer]],
    ) -> _Answer:
        """Answer a call, or set its status and return an empty message."""

        async def once(_: Principal) -> AsyncIterator[_Answer]:
            yield await work()

        answer = empty
        async for message in self._stream(context, method, once):
            answer = message
        return answer

    async def _stream(
        self, context: Context, method: str, work: Callable[[Principal], AsyncIterator[_Answer]]
    ) -> AsyncIterator[_Answer]:
        """Yield a call's messages; an error ends it with its status."""
        begun, code, status, name = time.perf_counter(), None, grpc.StatusCode.OK, None
        metadata = dict(context.invocation_metadata())
        request_id = _request_id(context, "")
        try:
            self.service.check_front(metadata.get(FRONT_HEADER))
            principal = self.service.identify(
                metadata.get("authorization"), metadata.get("x-api-key")
            )
            name = principal.name
            with self.service.admitted(principal):
                async for message in work(principal):
                    yield message
        except (asyncio.CancelledError, GeneratorExit):
            code, status = "client_gone", grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001 - every fault has a status
            told = _told(error, request_id)
            code, status = told.code, told.grpc_status
            _refuse(context, told, request_id)
        finally:
            self._tell(method, request_id, code, status, time.perf_counter() - begun, name)

    def _tell(
        self,
        method: str,
        request_id: str,
        code: str | None,
        status: grpc.StatusCode,
        seconds: float,
        principal: str | None,
    ) -> None:
        self.service.monitor.request("grpc", method, status.name, seconds)
        if code:
            self.service.monitor.error(code)
        event(
            "request",
            request_id=request_id,
            protocol="grpc",
            route=method,
            status=status.name,
            code=code,
            milliseconds=round(seconds * 1000, 2),
            principal=principal,
        )


def _told(error: Exception, request_id: str) -> ServeError:
    if isinstance(error, ServeError):
        return error
    if isinstance(error, v2.ProtocolError):
        return ServeError.of_protocol(error)
    LOGGER.error("call failed", exc_info=error, extra={"btray_request_id": request_id})
    return ServeError("internal", "the server failed; the request id is in its log")


def _refuse(context: Context, error: ServeError, request_id: str | None) -> None:
    context.set_code(error.grpc_status)
    context.set_details(str(error))
    trailing = [("btray-error-code", error.code)]
    if request_id:
        trailing.append(("request_id", request_id))
    if error.retry_after_s is not None:
        trailing.append(("retry-pushback-ms", str(round(1000 * error.retry_after_s))))
    context.set_trailing_metadata(trailing)


def _request_id(context: Context, given: str) -> str:
    """Return the id a client gave with its call, or Ray Serve's."""
    metadata = dict(context.invocation_metadata())
    own = getattr(context, "request_id", lambda: None)()
    told = (given, metadata.get("x-request-id"), own)
    return next((name for name in told if name and REQUEST_ID.fullmatch(name)), "")


def _message(answered: Answered, index: int, request_id: str) -> classifier_pb2.ClassifyResponse:
    """Return one image's answer as a message."""
    row: dict[str, Any] = answered.row(index)
    fields: dict[str, Any] = {"request_id": request_id, "index": index}
    if "error" in row:
        return classifier_pb2.ClassifyResponse(**fields, error=row["error"])
    return classifier_pb2.ClassifyResponse(
        **fields,
        class_name=row["class"],
        probabilities=row["probabilities"],
        prediction_set=row["prediction_set"],
        abstain=row["abstain"],
        out_of_distribution=row["out_of_distribution"],
        ood_score=row["ood_score"],
        model=row["model"],
        explanation_png=answered.explanations[index] or b"",
    )
