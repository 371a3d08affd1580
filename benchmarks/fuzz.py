"""Damaged images and requests by the hundred thousand: none may do more than be refused.

Usage: python benchmarks/fuzz.py [--bytes 10000000] [--seed 0] [--processes 2]

Images of every format served (and odd kinds of them) and requests (JSON and binary of the Open
Inference Protocol, its protobuf and ours) are overwritten, shortened, lengthened and spliced,
up to 63 bytes each, until so many bytes have been changed in all. Every image must give pixels or
an ImageError, every request what it asks for or a ProtocolError; anything else is told with what
makes it again, and so is a process that dies. Nothing here is random but by the seed.
"""

import argparse
import io
import json
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image

from btray.config import ImageConfig
from btray.core.images import ImageError
from btray.core.prepare import prepare
from btray.data.sources.phantom import phantom_patient
from btray.serve.proto import classifier_pb2, inference_pb2
from btray.serve.v2.errors import ProtocolError
from btray.serve.v2.grpc import parse_message, read_message
from btray.serve.v2.http import parse_http
from btray.serve.v2.tensors import pack_bytes

PORTION = 2000
"""Inputs of a task."""
SIZE = 64


@dataclass
class Found:
    """What a portion came to."""

    inputs: int = 0
    changed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    memory: int = 0
    failures: list[str] = field(default_factory=list)


def main() -> None:
    """Change, count, print the table, and one JSON object as the last line; exit 1 on a crash."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    total, portion = Found(), 0
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        while total.changed < options.bytes and len(total.failures) < 10:
            portions = range(portion, portion + 4 * options.processes)
            portion = portions.stop
            running = {number: pool.submit(fuzz, options.seed, number) for number in portions}
            for number, done in running.items():
                try:
                    add(total, done.result())
                except BrokenProcessPool:
                    sys.exit(f"a process died in a portion of {min(running)} to {number}")
    for failure in total.failures:
        print(failure, file=sys.stderr)
    figures = {
        "inputs": total.inputs,
        "bytes_changed": total.changed,
        "failures": len(total.failures),
        "slowest_seconds": round(total.slowest, 4),
        "peak_mib": total.memory // 2**20,
    }
    for name, value in figures.items():
        print(f"{name:32}{value:>14,}")
    for name, count in sorted(total.outcomes.items()):
        print(f"{name:32}{count:>14,}")
    print(json.dumps({**figures, "outcomes": dict(total.outcomes)}))
    if total.failures:
        sys.exit(1)


def add(total: Found, part: Found) -> None:
    """Add a portion to the whole."""
    total.inputs += part.inputs
    total.changed += part.changed
    total.outcomes += part.outcomes
    total.slowest = max(total.slowest, part.slowest)
    total.memory = max(total.memory, part.memory)
    total.failures += part.failures


def fuzz(seed: int, portion: int) -> Found:
    """Try a portion of changed inputs."""
    rng, found, seeds = np.random.default_rng([seed, portion]), Found(), make_seeds()
    for number in range(PORTION):
        kind, data = seeds[rng.integers(len(seeds))]
        changed, count = change(data, seeds[rng.integers(len(seeds))][1], rng)
        found.inputs += 1
        found.changed += count
        start = time.perf_counter()
        try:
            outcome = TRY[kind](changed)
        except Exception:  # noqa: BLE001 - this is what is looked for
            where = f"--seed {seed}, portion {portion}, input {number}, {kind}"
            found.failures.append(f"{where}: {traceback.format_exc()}")
            outcome = "CRASH"
        found.slowest = max(found.slowest, time.perf_counter() - start)
        found.outcomes[f"{kind}: {outcome}"] += 1
    found.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def change(data: bytes, other: bytes, rng: np.random.Generator) -> tuple[bytes, int]:
    """Return changed bytes and how many were; most near the beginning, which decoders trust."""
    changed, count = bytearray(data), 0
    reach = min(len(changed), int(rng.choice([64, 512, 1 << 20])))
    for _ in range(int(rng.integers(1, 4))):
        reach = min(reach, len(changed))
        if not reach:
            break
        at, size = int(rng.integers(reach)), int(rng.integers(1, 22))
        count += size
        match rng.integers(6):
            case 0 | 1 | 2:
                for place in rng.integers(reach, size=size):
                    changed[place] = rng.integers(256)
            case 3:
                del changed[at : at + size]
            case 4:
                changed[at:at] = rng.bytes(size)
            case _:
                begin = int(rng.integers(len(other)))
                changed[at : at + size] = other[begin : begin + size]
    if rng.random() < 0.05:
        del changed[int(rng.integers(len(changed) + 1)) :]
    return bytes(changed), count


def try_image(data: bytes) -> str:
    try:
        square = prepare(data, ImageConfig(size=SIZE))
    except ImageError as error:
        return error.code
    assert (square.shape, square.dtype) == ((SIZE, SIZE), np.uint8)
    return "pixels"


def try_infer(data: bytes) -> str:
    try:
        parse_message(read_message(data), SIZE)
    except ProtocolError as error:
        return error.status
    return "read"


def try_classify(data: bytes) -> str:
    try:
        request = classifier_pb2.ClassifyRequest.FromString(data)
    except DecodeError:
        return "invalid"
    return f"image {try_image(request.image)}"


def try_http(length: str | None) -> Callable[[bytes], str]:
    def attempt(data: bytes) -> str:
        try:
            parse_http(data, length, SIZE)
        except ProtocolError as error:
            return error.status
        return "read"

    return attempt


def make_requests() -> tuple[bytes, bytes, bytes, bytes, str]:
    """Return an infer and a classify message, and bodies in JSON and binary with its length."""
    picture = encode(slice_pixels(), "PNG")
    tensor = inference_pb2.ModelInferRequest.InferInputTensor
    infer = inference_pb2.ModelInferRequest(
        model_name="btray",
        id="1",
        inputs=[tensor(name="image", datatype="BYTES", shape=[1])],
        raw_input_contents=[pack_bytes([picture])],
    )
    classify = classifier_pb2.ClassifyRequest(image=picture, explain=True)
    pixels = {"name": "pixels", "shape": [1, SIZE, SIZE], "datatype": "UINT8"}
    plain = json.dumps({"inputs": [{**pixels, "data": [0] * SIZE**2}]}).encode()
    sized = {**pixels, "parameters": {"binary_data_size": SIZE**2}}
    head = json.dumps({"id": "1", "inputs": [sized], "outputs": [{"name": "class"}]}).encode()
    messages = infer.SerializeToString(), classify.SerializeToString()
    return *messages, plain, head + bytes(SIZE**2), str(len(head))


def slice_pixels() -> np.ndarray:
    """Return a phantom slice."""
    return next(iter(phantom_patient(0, 0, 1))).image


def encode(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def make_seeds() -> list[tuple[str, bytes]]:
    """Return whole inputs, each with its kind."""
    grey = Image.fromarray(slice_pixels()).resize((96, 96))
    colour = grey.convert("RGB")
    deep = np.asarray(grey).astype(np.uint16) * 200
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [
        *(encode(grey, kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")),
        encode(colour, "JPEG", progressive=True, exif=exif),
        encode(colour.convert("CMYK"), "JPEG"),
        encode(colour.quantize(16), "PNG", transparency=1),
        encode(colour.convert("RGBA"), "PNG"),
        encode(colour.convert("RGBA"), "WEBP", lossless=True),
        encode(deep, "PNG"),
        encode(deep, "TIFF"),
        encode(deep.astype(np.float32), "TIFF"),
        *(encode(grey, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg")),
        encode(grey, "GIF", save_all=True, append_images=[grey.transpose(0)]),
    ]
    infer, classify, plain, binary, _ = REQUESTS
    return [
        *(("image", data) for data in images),
        *[("infer", infer), ("classify", classify), ("json", plain), ("binary", binary)] * 3,
    ]


REQUESTS = make_requests()
TRY: dict[str, Callable[[bytes], str]] = {
    "image": try_image,
    "infer": try_infer,
    "classify": try_classify,
    "json": try_http(None),
    "binary": try_http(REQUESTS[-1]),
}

if __name__ == "__main__":
    main()
