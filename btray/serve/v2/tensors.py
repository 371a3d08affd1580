"""Tensors of the protocol and the bytes they travel as.

Raw data is little-endian in row-major order without padding; an element of BYTES is its length
in 4 bytes, and then its bytes.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from btray.serve.v2.errors import invalid

Datatype = Literal["BYTES", "BOOL", "UINT8", "FP32", "FP64"]
Images = tuple[bytes, ...] | tuple[NDArray[np.uint8], ...]
"""Encoded files, or prepared squares [size, size]."""

_DTYPES: Final[dict[str, str]] = {"BOOL": "?", "UINT8": "u1", "FP32": "<f4", "FP64": "<f8"}
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True)
class TensorInfo:
    """What a tensor is called and looks like; -1 in a shape stands for a size that varies."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def described(self) -> dict[str, object]:
        """Return it as the metadata of a model has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Tensor:
    """A tensor with its elements."""

    name: str
    datatype: Datatype
    values: NDArray[Any] | tuple[bytes, ...]
    """An array of the datatype, or the elements [n] of BYTES."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its sizes."""
        values = self.values
        return (len(values),) if isinstance(values, tuple) else values.shape

    def raw(self) -> bytes:
        """Return the elements as raw data."""
        if isinstance(self.values, tuple):
            return pack_bytes(self.values)
        return self.values.astype(_DTYPES[self.datatype], copy=False).tobytes()

    def listed(self) -> list[object]:
        """Return the elements as JSON has them, flat, BYTES as strings.

        Raises:
            UnicodeDecodeError: BYTES that are no UTF-8.

        """
        if isinstance(self.values, tuple):
            return [element.decode("utf-8") for element in self.values]
        listed: list[object] = self.values.ravel().tolist()
        return listed


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """Return elements of BYTES as raw data."""
    return b"".join(part for item in elements for part in (_LENGTH.pack(len(item)), item))


def images_of_raw(info: TensorInfo, raw: bytes) -> Images:
    """Return the images of an input's raw data; `info` has the shape that was announced.

    Raises:
        ProtocolError: the data ends early, or there is more.

    """
    if info.datatype == "BYTES":
        return _unpack_bytes(raw, info.shape[0])
    return _unpack_squares(raw, info.shape)


def images_of_bytes(info: TensorInfo, elements: Sequence[bytes]) -> Images:
    """Return the images of an input of BYTES, given as its elements.

    Raises:
        ProtocolError: not as many as were announced.

    """
    if len(elements) != info.shape[0]:
        raise invalid(f"shape {list(info.shape)} is announced; the data has {len(elements)}")
    return tuple(elements)


def images_of_numbers(info: TensorInfo, elements: Iterable[int]) -> Images:
    """Return the images of an input of UINT8, given as whole numbers in row-major order.

    Raises:
        ProtocolError: not as many as were announced, or one beyond 0..255.

    """
    try:
        raw = bytes(elements)
    except ValueError:
        raise invalid(f"input {info.name}: an element is not in 0..255") from None
    return _unpack_squares(raw, info.shape)


def _unpack_bytes(raw: bytes, count: int) -> tuple[bytes, ...]:
    elements, start = [], 0
    for number in range(count):
        if start + _LENGTH.size > len(raw):
            raise invalid(f"{count} elements are announced; the data ends before number {number}")
        (length,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size
        if start + length > len(raw):
            left = len(raw) - start
            raise invalid(f"element {number} has {length:,} bytes by its length; {left:,} are left")
        elements.append(raw[start : start + length])
        start += length
    if start != len(raw):
        raise invalid(f"{len(raw) - start:,} bytes are left over after {count} elements")
    return tuple(elements)


def _unpack_squares(raw: bytes, shape: Sequence[int]) -> tuple[NDArray[np.uint8], ...]:
    count, height, width = shape
    needed = count * height * width
    if len(raw) != needed:
        raise invalid(f"shape {list(shape)} has {needed:,} elements; the data has {len(raw):,}")
    # A copy, for what comes in cannot be written to, and torch wants what can.
    return tuple(np.frombuffer(raw, np.uint8).reshape(count, height, width).copy())
