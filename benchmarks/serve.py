"""Requests a second and latency of btray's server beside FastAPI, LitServe and plain Ray Serve.

Usage: python benchmarks/serve.py [--seconds 6] [--processes 1 2] [--peers fastapi litserve ray]

The same network (`mobilenetv3_small_100` at 160 px, untrained) as the same ONNX file, the same
images, the same decoding and preprocessing, the same client on the same cores. btray has keys,
limits, metrics and logs on; its peers have none of them. LitServe is no dependency of btray:
install it beside, or name another environment's Python in BTRAY_PEERS_PYTHON.
"""

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from btray.serve.load import Plan, Step, run_load
from btray.serve.load_clients import GrpcClient, HttpClient
from btray.serve.load_images import draw_images
from btray.serve.load_report import summarise

HEAD = """
import os, sys
import numpy as np
import onnxruntime as ort
from btray.config import ImageConfig
from btray.core.prepare import prepare

IMAGE = ImageConfig(size=160)


def session():
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


def row(logits):
    e = np.exp(logits - logits.max())
    p = e / e.sum()
    return {"class": int(p.argmax()), "probabilities": p.tolist()}
"""

FASTAPI = (
    HEAD
    + """
from fastapi import FastAPI, Request

app, engine = FastAPI(), session()


@app.post("/v1/classify")
async def classify(request: Request):
    square = prepare(await request.body(), IMAGE)
    return row(engine.run(["logits"], {"squares": square[None]})[0][0])
"""
)

LITSERVE = (
    HEAD
    + """
import base64
import litserve as ls


class Api(ls.LitAPI):
    def setup(self, device):
        self.engine = session()

    def decode_request(self, request):  # it takes JSON and forms alone
        return prepare(base64.b64decode(request["image"]), IMAGE)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, squares):
        if squares.ndim == 2:
            squares = squares[None]
        return self.engine.run(["logits"], {"squares": squares})[0]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, logits):
        return row(np.asarray(logits).reshape(-1))


if __name__ == "__main__":
    batch = int(os.environ.get("BATCH", "1"))
    api = Api(max_batch_size=batch, batch_timeout=0.005, api_path="/v1/classify")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=int(os.environ["PROCESSES"]))
    place = {"host": "127.0.0.1", "port": int(os.environ["PORT"])}
    server.run(**place, generate_client_file=False, log_level="error")
"""
)

RAY = (
    HEAD
    + """
import signal
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=int(os.environ["PROCESSES"]), max_ongoing_requests=64)
class Classify:
    def __init__(self):
        self.engine = session()

    async def __call__(self, request: Request):
        square = prepare(await request.body(), IMAGE)
        return row(self.engine.run(["logits"], {"squares": square[None]})[0][0])


ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
serve.run(Classify.bind(), route_prefix="/v1/classify")
signal.sigwait([signal.SIGTERM])
serve.shutdown()
"""
)


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peers", nargs="*", default=["fastapi", "litserve", "ray"])
    options = parser.parse_args()
    images = draw_images(32)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle, model = make_model(folder)
        figures = ceiling(model, images)
        print(
            f"{'server':24}{'processes':>10}{'connections':>12}"
            f"{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}"
        )
        for processes in options.processes:
            for name in options.peers:
                for batch in (1, 16) if name == "litserve" else (1,):
                    title = f"{name}{'' if batch == 1 else f'_batch{batch}'}"
                    with peer(name, model, folder, processes, batch) as url:
                        sent = as_json(images) if name == "litserve" else images
                        measure(figures, title, processes, url, sent, options.seconds)
            with ours(bundle, folder, processes) as (url, grpc, key):
                measure(figures, "btray", processes, url, images, options.seconds, key)
                measure(figures, "btray_grpc", processes, grpc, images, options.seconds, key)
                if processes == 1:
                    tail(figures, url, images, options.seconds, key)
    compare(figures)
    print(json.dumps({key: round(value, 3) for key, value in figures.items()}))


def make_model(folder: Path) -> tuple[Path, Path]:
    """Write a bundle with random weights, and its ONNX file; return both."""
    import torch

    from btray.config import Config, ImageConfig, ModelConfig
    from btray.core.bundle import save_bundle
    from btray.core.calibration import Calibration
    from btray.core.card import FORMAT_VERSION, Card, Provenance
    from btray.core.labels import CLASS_NAMES
    from btray.core.onnx_export import export_onnx
    from btray.core.zoo import create_model

    torch.manual_seed(0)
    settings = ModelConfig(name="mobilenetv3_small_100", dropout=0)
    card = Card(
        format_version=FORMAT_VERSION,
        name="benchmark",
        class_names=CLASS_NAMES,
        model=settings,
        image=ImageConfig(size=160),
        metrics={},
        calibration=Calibration(
            temperature=1.0, coverage=0.95, set_threshold=0.2, ood_threshold=0.0, rows=1
        ),
        provenance=Provenance(
            btray_version="0",
            code_version=None,
            data_hash="0" * 64,
            seed=0,
            run=None,
            epoch=0,
            created="2026-01-01T00:00:00+00:00",
        ),
        train_config=Config().model_dump(mode="json"),
        weights_sha256="",
    )
    weights = create_model(settings, len(CLASS_NAMES), 160).state_dict()
    bundle = save_bundle(folder / "bundle", {k: v.contiguous() for k, v in weights.items()}, card)
    export_onnx(bundle, folder / "onnx")
    return folder / "bundle", folder / "onnx" / "model.onnx"


def ceiling(model: Path, images: list[bytes]) -> dict[str, float]:
    """Measure what one thread decodes and computes, with no server at all."""
    os.environ["MODEL"] = str(model)
    space: dict[str, object] = {}
    exec(HEAD, space)
    engine, prepare, settings = space["session"](), space["prepare"], space["IMAGE"]
    squares = [prepare(image, settings) for image in images]
    for square in squares:
        engine.run(["logits"], {"squares": square[None]})
    begun = time.perf_counter()
    for _ in range(8):
        for square in squares:
            engine.run(["logits"], {"squares": square[None]})
    infer = (time.perf_counter() - begun) / 8 / len(images)
    begun = time.perf_counter()
    for _ in range(8):
        for image in images:
            prepare(image, settings)
    decode = (time.perf_counter() - begun) / 8 / len(images)
    cores = len(os.sched_getaffinity(0))
    return {
        "cores": cores,
        "infer_ms": 1000 * infer,
        "decode_ms": 1000 * decode,
        "ceiling_per_second": cores / (infer + decode),
    }


def as_json(images: list[bytes]) -> list[bytes]:
    return [json.dumps({"image": base64.b64encode(image).decode()}).encode() for image in images]


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


@contextmanager
def peer(name: str, model: Path, folder: Path, processes: int, batch: int) -> Iterator[str]:
    """Run a peer; give its URL."""
    port = free_port()
    (folder / "peer.py").write_text({"fastapi": FASTAPI, "litserve": LITSERVE, "ray": RAY}[name])
    environment = os.environ | {
        "MODEL": str(model),
        "PORT": str(port),
        "PROCESSES": str(processes),
        "BATCH": str(batch),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",
    }
    python = os.environ.get("BTRAY_PEERS_PYTHON", sys.executable)
    command = [python, "peer.py"]
    if name == "fastapi":
        command = [
            python,
            "-m",
            "uvicorn",
            "peer:app",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            str(processes),
            "--log-level",
            "error",
            "--no-access-log",
        ]
    with running(command, environment, folder, f"http://127.0.0.1:{port}/v1/classify"):
        yield f"http://127.0.0.1:{port}/v1/classify"


@contextmanager
def ours(bundle: Path, folder: Path, processes: int) -> Iterator[tuple[str, str, str]]:
    """Run btray with keys; give the URLs of HTTP and gRPC, and a key."""
    keys = folder / f"keys-{processes}.json"
    command = [sys.executable, "-m", "btray"]
    key = subprocess.run(
        [*command, "keys", "create", "bench", "--file", str(keys)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[-1]
    http, grpc = free_port(), free_port()
    command += [
        "serve",
        str(bundle),
        "--replicas",
        str(processes),
        "--keys",
        str(keys),
        "--http-port",
        str(http),
        "--grpc-port",
        str(grpc),
    ]
    environment = os.environ | {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    with running(command, environment, folder, f"http://127.0.0.1:{http}/v2/health/ready"):
        yield f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}", key


@contextmanager
def running(
    command: list[str], environment: dict[str, str], folder: Path, url: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the context is left; wait until something answers at a URL."""
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            for _ in range(1200):
                if answers(url):
                    break
                if process.poll() is not None:
                    raise SystemExit((folder / "log").read_text()[-3000:])
                time.sleep(0.1)
            else:
                raise SystemExit(f"no answer at {url}\n" + (folder / "log").read_text()[-3000:])
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(40)
            with suppress(ProcessLookupError):  # LitServe leaves processes behind
                os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status < 400
    except urllib.error.HTTPError as error:
        return error.code in (400, 405, 422, 500) and "health" not in url
    except OSError:
        return False


def measure(
    figures: dict[str, float],
    title: str,
    processes: int,
    url: str,
    images: list[bytes],
    seconds: float,
    key: str | None = None,
) -> None:
    for connections in (1, 32):
        made = GrpcClient if url.startswith("grpc") else HttpClient
        client = made(url, images, key)
        plan = Plan(connections=connections, duration=seconds, warmup=2.0)
        found = summarise(url, plan, run_load(client, plan))
        if found["errors"]:
            raise SystemExit(f"{title}: {found['errors']}")
        rate, latency = found["requests_per_second"], found["latency_ms"]
        name = f"{title}_{processes}p_{connections}c"
        figures[f"{name}_per_second"] = rate
        figures[f"{name}_p50_ms"], figures[f"{name}_p99_ms"] = latency["p50"], latency["p99"]
        print(
            f"{title:24}{processes:10}{connections:12}{rate:12.0f}{latency['p50']:9.2f}{latency['p99']:9.2f}",
            flush=True,
        )


def tail(
    figures: dict[str, float], url: str, images: list[bytes], seconds: float, key: str
) -> None:
    """Measure the 99th percentile at 80 % of the capacity, arrivals at random."""
    rate = 0.8 * figures["btray_1p_32c_per_second"]
    plan = Plan(connections=64, duration=seconds, steps=(Step(rate, seconds),), warmup=2.0)
    found = summarise(url, plan, run_load(HttpClient(url, images, key), plan))
    latency = found["latency_ms"]
    figures["btray_80_percent_p50_ms"], figures["btray_80_percent_p99_ms"] = (
        latency["p50"],
        latency["p99"],
    )
    print(
        f"{'btray at 80 %':24}{1:10}{'open':>12}"
        f"{rate:12.0f}{latency['p50']:9.2f}{latency['p99']:9.2f}"
    )


def compare(figures: dict[str, float]) -> None:
    """Add the ratios."""

    def best(prefixes: tuple[str, ...], suffix: str) -> float | None:
        found = [v for k, v in figures.items() if k.startswith(prefixes) and k.endswith(suffix)]
        return max(found, default=None)

    own = best(("btray_1p", "btray_2p"), "32c_per_second")
    pairs = {
        "btray_vs_best_peer": best(("fastapi", "litserve"), "32c_per_second"),
        "btray_vs_plain_ray_serve": best(("ray",), "32c_per_second"),
        "btray_vs_limit": figures["ceiling_per_second"],
        "btray_grpc_vs_http": None,
    }
    for name, other in pairs.items():
        if own and other:
            figures[name] = own / other
    grpc = best(("btray_grpc",), "32c_per_second")
    if own and grpc:
        figures["btray_grpc_vs_http"] = grpc / own
    if "fastapi_1p_1c_p50_ms" in figures and "btray_1p_1c_p50_ms" in figures:
        figures["btray_vs_fastapi_p50"] = (
            figures["btray_1p_1c_p50_ms"] / figures["fastapi_1p_1c_p50_ms"]
        )
    if "btray_80_percent_p99_ms" in figures:
        figures["p99_at_80_percent_vs_p50"] = (
            figures["btray_80_percent_p99_ms"] / figures["btray_80_percent_p50_ms"]
        )
    for name in sorted(set(figures)):
        if "_vs_" in name or name in ("ceiling_per_second", "infer_ms", "decode_ms"):
            print(f"{name:40}{figures[name]:10.3f}")


if __name__ == "__main__":
    main()
