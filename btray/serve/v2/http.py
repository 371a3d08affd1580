"""Requests and responses of the protocol in JSON, with its binary tensor extension.

With the extension a body is a JSON object and, after it, the raw data of the tensors in their
order; the header `Inference-Header-Content-Length` tells where the object ends.

In JSON an element of BYTES is a string, which stands for its UTF-8 and hence cannot hold an
image. With the parameter `content_type` or `encoding` set to `base64`, on the input or on the
request, it stands for the bytes that it decodes to.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NoReturn, TypeVar

from btray.serve.v2.errors import invalid, shown
from btray.serve.v2.model import (
    MAX_IMAGES,
    InferRequest,
    InferResponse,
    check_input,
    check_outputs,
    check_parameters,
)
from btray.serve.v2.tensors import (
    Images,
    Tensor,
    TensorInfo,
    images_of_bytes,
    images_of_numbers,
    images_of_raw,
)

HEADER_LENGTH: Final = "Inference-Header-Content-Length"

_Value = TypeVar("_Value", str, bool, int, list[Any], dict[str, Any])
_Object = dict[str, Any]
_KINDS: Final[dict[type, str]] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True)
class HttpBody:
    """A body and what its headers have to say of it."""

    content: bytes
    header_length: int | None
    """Bytes of JSON before the raw data; None when it is JSON alone."""

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        if self.header_length is None:
            return {"Content-Type": "application/json"}
        return {
            "Content-Type": "application/octet-stream",
            HEADER_LENGTH: str(self.header_length),
        }


def parse_http(
    body: bytes, header_length: str | None, size: int, max_images: int = MAX_IMAGES
) -> InferRequest:
    """Read the body of `POST /v2/models/…/infer`.

    Args:
        body: As it came, uncompressed.
        header_length: The header `Inference-Header-Content-Length`, if there is one.
        size: Side of the model's prepared squares, in pixels.
        max_images: More are refused.

    Raises:
        ProtocolError: `too_large` for too many images, `invalid` for all else that is wrong.

    """
    head, raw = _split(body, header_length)
    root = _object(head)
    parameters = _parameters(root, "the request")
    tensor = _only_input(root)
    where = f"input {shown(_needed(tensor, 'name', str, 'an input'))}"
    info = check_input(
        tensor["name"],
        _needed(tensor, "datatype", str, where),
        _shape(tensor, where),
        size,
        max_images,
    )
    own = _parameters(tensor, where)
    check_parameters(own, where)
    if (length := _optional(own, "binary_data_size", int, where)) is None:
        images = _from_json(info, _needed(tensor, "data", list, where), _is_base64(own, parameters))
        length = 0
    else:
        images = _from_raw(info, tensor, length, raw)
    if len(raw) != length:
        raise invalid(f"{len(raw) - length:,} bytes after the JSON belong to no input")
    outputs, binary = _outputs(root, parameters)
    return InferRequest(_id(root), images, outputs, binary)


def encode_http(response: InferResponse) -> HttpBody:
    """Return the body of a response.

    Raises:
        ValueError: an output in JSON is not finite.

    """
    raw = [tensor.raw() if tensor.name in response.binary else None for tensor in response.tensors]
    root: _Object = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        root["id"] = response.id
    root["outputs"] = [
        _described(tensor, data) for tensor, data in zip(response.tensors, raw, strict=True)
    ]
    head = json.dumps(root, allow_nan=False, separators=(",", ":")).encode()
    parts = [data for data in raw if data is not None]
    return HttpBody(b"".join([head, *parts]), len(head) if parts else None)


def _described(tensor: Tensor, raw: bytes | None) -> _Object:
    described: _Object = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
    }
    if raw is None:
        return described | {"data": tensor.listed()}
    return described | {"parameters": {"binary_data_size": len(raw)}}


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not re.fullmatch("[0-9]{1,18}", header_length):
        raise invalid(f"{HEADER_LENGTH}: {shown(header_length)} is no number of bytes")
    length = int(header_length)
    if length > len(body):
        raise invalid(f"{HEADER_LENGTH} is {length:,}; the body has {len(body):,} bytes")
    return body[:length], body[length:]


def _object(text: bytes) -> _Object:
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        # Raw data without the header is what a client most often does wrong here.
        raise invalid(
            f"the JSON is not UTF-8 at byte {error.start}; with raw data after it, the header "
            f"{HEADER_LENGTH} has to tell where it ends"
        ) from None
    except RecursionError:
        raise invalid("the JSON is nested too deep") from None
    except ValueError as error:
        raise invalid(f"no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid("the JSON is not an object")
    return value


def _no_number(name: str) -> NoReturn:
    raise invalid(f"{name} is not JSON")


def _optional(holder: _Object, key: str, kind: type[_Value], where: str) -> _Value | None:
    value = holder.get(key)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise invalid(f"{where}: {key} is not {_KINDS[kind]}")
    return value


def _needed(holder: _Object, key: str, kind: type[_Value], where: str) -> _Value:
    value = _optional(holder, key, kind, where)
    if value is None:
        raise invalid(f"{where} has no {key}")
    return value


def _parameters(holder: _Object, where: str) -> _Object:
    return _optional(holder, "parameters", dict, where) or {}


def _id(root: _Object) -> str:
    text = _optional(root, "id", str, "the request") or ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid("the request: id is not Unicode (half a surrogate pair)") from None
    return text


def _only_input(root: _Object) -> _Object:
    inputs = _needed(root, "inputs", list, "the request")
    if len(inputs) != 1:
        raise invalid(f"{len(inputs)} inputs: send one, `image` or `pixels`")
    (tensor,) = inputs
    if not isinstance(tensor, dict):
        raise invalid("an input is not an object")
    return tensor


def _shape(tensor: _Object, where: str) -> list[int]:
    shape = _needed(tensor, "shape", list, where)
    if not set(map(type, shape)) <= {int}:
        raise invalid(f"{where}: the shape is not of whole numbers")
    return shape


def _from_raw(info: TensorInfo, tensor: _Object, length: int, raw: bytes) -> Images:
    if tensor.get("data") is not None:
        raise invalid(f"input {info.name} has both data and binary_data_size")
    if not 0 <= length <= len(raw):
        raise invalid(
            f"input {info.name}: binary_data_size does not fit the {len(raw):,} bytes that come "
            f"after the JSON by {HEADER_LENGTH}"
        )
    return images_of_raw(info, raw[:length])


def _from_json(info: TensorInfo, data: list[Any], is_base64: bool) -> Images:
    elements = _flat(info, data)
    wanted = str if info.datatype == "BYTES" else int
    if not set(map(type, elements)) <= {wanted}:
        raise invalid(f"input {info.name}: an element of the data is not {_KINDS[wanted]}")
    if info.datatype == "BYTES":
        return images_of_bytes(info, [_bytes_of(element, is_base64) for element in elements])
    return images_of_numbers(info, elements)


def _flat(info: TensorInfo, data: list[Any]) -> list[Any]:
    """Return elements in row-major order; they come flat, or nested as the shape is."""
    depth = 0
    while data and isinstance(data[0], list):
        depth += 1
        sizes = {len(item) if isinstance(item, list) else -1 for item in data}
        if depth >= len(info.shape) or sizes != {info.shape[depth]}:
            raise invalid(f"input {info.name}: the lists are not nested as the shape says")
        data = list(chain.from_iterable(data))
    return data


def _bytes_of(element: str, is_base64: bool) -> bytes:
    try:
        if is_base64:
            return base64.b64decode(element, validate=True)
        return element.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid("input image: a string is not Unicode (half a surrogate pair)") from None
    except ValueError:
        raise invalid("input image: an element is not valid base64") from None


def _is_base64(own: Mapping[str, object], of_request: Mapping[str, object]) -> bool:
    for parameters in (own, of_request):
        encoding = parameters.get("encoding")
        if encoding not in (None, "base64"):
            raise invalid("parameter encoding: only base64 is known")
        if "base64" in (encoding, parameters.get("content_type")):
            return True
    return False


def _outputs(root: _Object, parameters: _Object) -> tuple[tuple[str, ...], frozenset[str]]:
    usual = _optional(parameters, "binary_data_output", bool, "the request") or False
    binary = {}
    names = []
    for wanted in _optional(root, "outputs", list, "the request") or []:
        if not isinstance(wanted, dict):
            raise invalid("an output is not an object")
        name = _needed(wanted, "name", str, "an output")
        own = _parameters(wanted, f"output {shown(name)}")
        check_parameters(own, f"output {shown(name)}")
        chosen = _optional(own, "binary_data", bool, f"output {shown(name)}")
        names.append(name)
        binary[name] = usual if chosen is None else chosen
    outputs = check_outputs(names)
    return outputs, frozenset(name for name in outputs if binary.get(name, usual))
