"""Requests and responses of the protocol in protobuf."""

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from btray.serve.proto import inference_pb2 as pb
from btray.serve.v2.errors import invalid, shown
from btray.serve.v2.model import (
    MAX_IMAGES,
    CardLike,
    InferRequest,
    InferResponse,
    check_input,
    check_outputs,
    check_parameters,
    model_metadata,
    server_metadata,
)
from btray.serve.v2.tensors import (
    Images,
    TensorInfo,
    images_of_bytes,
    images_of_numbers,
    images_of_raw,
)

_CONTENTS: Final = {"image": "bytes_contents", "pixels": "uint_contents"}
"""Where the elements of an input are when they are not in `raw_input_contents`."""


def read_message(data: bytes) -> pb.ModelInferRequest:
    """Return the message that some bytes hold.

    Raises:
        ProtocolError: they are no such message.

    """
    try:
        return pb.ModelInferRequest.FromString(data)
    except DecodeError:
        raise invalid("the bytes are no inference.ModelInferRequest") from None


def parse_message(
    message: pb.ModelInferRequest, size: int, max_images: int = MAX_IMAGES
) -> InferRequest:
    """Read a request.

    Args:
        message: As it came.
        size: Side of the model's prepared squares, in pixels.
        max_images: More are refused.

    Raises:
        ProtocolError: `too_large` for too many images, `invalid` for all else that is wrong.

    """
    if len(message.inputs) != 1:
        raise invalid(f"{len(message.inputs)} inputs: send one, `image` or `pixels`")
    tensor = message.inputs[0]
    info = check_input(tensor.name, tensor.datatype, list(tensor.shape), size, max_images)
    check_parameters(tensor.parameters, f"input {info.name}")
    if message.raw_input_contents:
        images = _from_raw(info, tensor, message.raw_input_contents)
    else:
        images = _from_contents(info, tensor.contents)
    for output in message.outputs:
        check_parameters(output.parameters, f"output {shown(output.name)}")
    outputs = check_outputs([output.name for output in message.outputs])
    return InferRequest(message.id, images, outputs)


def encode_message(response: InferResponse) -> pb.ModelInferResponse:
    """Return a response, its elements as raw data."""
    outputs = [
        pb.ModelInferResponse.InferOutputTensor(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        for tensor in response.tensors
    ]
    return pb.ModelInferResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=response.id,
        outputs=outputs,
        raw_output_contents=[tensor.raw() for tensor in response.tensors],
    )


def server_metadata_message() -> pb.ServerMetadataResponse:
    """Return what the server says of itself."""
    # The extension is of HTTP: raw data is in gRPC's messages by themselves.
    return pb.ServerMetadataResponse(**(server_metadata() | {"extensions": []}))


def model_metadata_message(
    name: str, versions: Sequence[str], card: CardLike
) -> pb.ModelMetadataResponse:
    """Return what a model takes and gives."""
    fields = model_metadata(name, versions, card)
    kind = pb.ModelMetadataResponse.TensorMetadata
    tensors = {key: [kind(**info) for info in fields[key]] for key in ("inputs", "outputs")}
    return pb.ModelMetadataResponse(**(fields | tensors))


def _from_raw(
    info: TensorInfo, tensor: pb.ModelInferRequest.InferInputTensor, raw: Sequence[bytes]
) -> Images:
    if tensor.contents.ListFields():
        raise invalid(f"input {info.name} has contents beside raw_input_contents: send one of them")
    if len(raw) != 1:
        raise invalid(f"raw_input_contents has {len(raw)} elements for one input")
    return images_of_raw(info, raw[0])


def _from_contents(info: TensorInfo, contents: pb.InferTensorContents) -> Images:
    filled = [field.name for field, _ in contents.ListFields()]
    if filled != [_CONTENTS[info.name]]:
        raise invalid(
            f"input {info.name} is in {', '.join(filled) or 'no field'}; "
            f"it belongs into {_CONTENTS[info.name]} or raw_input_contents"
        )
    if info.datatype == "BYTES":
        return images_of_bytes(info, contents.bytes_contents)
    return images_of_numbers(info, contents.uint_contents)
