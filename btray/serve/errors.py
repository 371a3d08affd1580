"""Why a request is not answered: one kind each for HTTP and gRPC."""

from typing import Final

import grpc

from btray.core.images import ImageError
from btray.serve.v2 import ProtocolError

_KINDS: Final[dict[str, tuple[int, grpc.StatusCode]]] = {
    "invalid_request": (400, grpc.StatusCode.INVALID_ARGUMENT),
    "empty": (400, grpc.StatusCode.INVALID_ARGUMENT),
    "unauthenticated": (401, grpc.StatusCode.UNAUTHENTICATED),
    "forbidden": (403, grpc.StatusCode.PERMISSION_DENIED),
    "not_found": (404, grpc.StatusCode.NOT_FOUND),
    "method_not_allowed": (405, grpc.StatusCode.UNIMPLEMENTED),
    "too_large": (413, grpc.StatusCode.INVALID_ARGUMENT),
    "unsupported_media_type": (415, grpc.StatusCode.INVALID_ARGUMENT),
    "not_an_image": (415, grpc.StatusCode.INVALID_ARGUMENT),
    "unusable_image": (422, grpc.StatusCode.INVALID_ARGUMENT),
    "too_many_requests": (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
    "internal": (500, grpc.StatusCode.INTERNAL),
    "not_offered": (501, grpc.StatusCode.UNIMPLEMENTED),
    "overloaded": (503, grpc.StatusCode.RESOURCE_EXHAUSTED),
    "unavailable": (503, grpc.StatusCode.UNAVAILABLE),
    "deadline_exceeded": (504, grpc.StatusCode.DEADLINE_EXCEEDED),
}


class ServeError(Exception):
    """A request that cannot be answered, in words for who sent it."""

    def __init__(
        self, kind: str, message: str, retry_after_s: float | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.http_status, self.grpc_status = _KINDS[kind]
        self.kind, self.code, self.retry_after_s = kind, code or kind, retry_after_s

    @classmethod
    def of_protocol(cls, error: ProtocolError) -> "ServeError":
        """Return why a request of the Open Inference Protocol is refused."""
        kind = "invalid_request" if error.status == "invalid" else error.status
        return cls(kind, error.message)

    @classmethod
    def of_image(cls, error: ImageError) -> "ServeError":
        """Return why an image cannot be used; the code stays the image's own."""
        kind = error.code if error.code in _KINDS else "unusable_image"
        return cls(kind, str(error), code=error.code)
