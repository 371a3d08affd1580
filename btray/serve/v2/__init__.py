"""The Open Inference Protocol, version 2 (KServe, Triton): bytes to requests, answers to bytes.

Both transports become one `InferRequest`; `respond` makes one `InferResponse` of the answers,
which goes back the way the request came. Nothing here knows Ray, torch or a socket.
"""

from btray.serve.v2.errors import ProtocolError
from btray.serve.v2.grpc import (
    encode_message,
    model_metadata_message,
    parse_message,
    read_message,
    server_metadata_message,
)
from btray.serve.v2.http import HEADER_LENGTH, HttpBody, encode_http, parse_http
from btray.serve.v2.model import (
    MAX_IMAGES,
    OUTPUTS,
    InferRequest,
    InferResponse,
    model_metadata,
    respond,
    server_metadata,
)
from btray.serve.v2.tensors import Tensor

__all__ = [
    "HEADER_LENGTH",
    "MAX_IMAGES",
    "OUTPUTS",
    "HttpBody",
    "InferRequest",
    "InferResponse",
    "ProtocolError",
    "Tensor",
    "encode_http",
    "encode_message",
    "model_metadata",
    "model_metadata_message",
    "parse_http",
    "parse_message",
    "read_message",
    "respond",
    "server_metadata",
    "server_metadata_message",
]
