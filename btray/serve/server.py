"""One machine's server: Ray, Serve and its data plane, from start to drain."""

import functools
import io
import logging
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from btray.errors import UserError
from btray.serve.config import LimitsConfig, ServeConfig

_OPEN_S: Final = 60.0
"""How long the ports may stay closed once replicas are there, in seconds."""


@dataclass(frozen=True)
class Door:
    """Where a server is reached."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 9000
    tls_certificate: Path | None = None
    """PEM file; with `tls_key`, both ports speak TLS."""
    tls_key: Path | None = None

    @property
    def url(self) -> str:
        """Return the address of the page."""
        scheme = "https" if self.tls_certificate else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.http_port}"


@contextmanager
def serving(config: ServeConfig, door: Door) -> Iterator[str]:
    """Serve as long as the context lasts; give the data plane's name once it answers.

    Joins the cluster `RAY_ADDRESS` names, or starts Ray on this machine. At the end, requests
    in work are answered before it goes.

    Raises:
        UserError: a port that is taken, a certificate or bundle that cannot be used, no cluster.

    """
    from btray.cluster import connect, joined
    from btray.serve.auth import Authenticator, require_auth_for
    from btray.serve.sources import identify
    from btray.serve.tracing import tracing_config

    tracing_config()
    require_auth_for(door.host, config.auth)
    Authenticator(config.auth)  # what replicas would stumble on is told before anything starts
    for model in config.models:
        for uri in model.bundles:
            identify(uri, config.tracking)
    with tempfile.TemporaryDirectory(prefix="btray-serve-") as runtime:
        if joined():
            plane = "the cluster's own proxy"
            if door.tls_certificate is not None:
                raise UserError("--tls-certificate is for a server of this machine alone")
        else:
            _check_ports(door)
            plane = _prepare(door, config.limits, Path(runtime))
        connect()
        with _deployed(config, door):
            yield plane


def _prepare(door: Door, limits: LimitsConfig, runtime: Path) -> str:
    """Set the environment of a data plane of this machine; return its name."""
    from btray.serve.dataplane import PlaneLimits, data_plane_environment

    longest = math.ceil(limits.deadline_s) + 30
    environment, reason = data_plane_environment(
        runtime,
        PlaneLimits(answer_s=longest, body_bytes=limits.body_bytes),
        door.tls_certificate,
        door.tls_key,
    )
    os.environ.update(environment)
    return "HAProxy" if environment else f"Ray Serve's proxy ({reason})"


def _check_ports(door: Door) -> None:
    for option, port in (("--http-port", door.http_port), ("--grpc-port", door.grpc_port)):
        family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
        try:
            with socket.socket(family) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind((door.host, port))
        except OSError as error:
            raise UserError(
                f"{door.host}:{port}: {(error.strerror or str(error)).lower()}; "
                f"give another with --host or {option}"
            ) from None


@contextmanager
def _deployed(config: ServeConfig, door: Door) -> Iterator[None]:
    import ray
    from ray import serve

    from btray.cluster import joined
    from btray.serve.app import SERVICERS
    from btray.serve.tracing import tracing_config

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    start = functools.partial(
        serve.start,
        proxy_location="HeadOnly",
        http_options={"host": door.host, "port": door.http_port},
        grpc_options={"port": door.grpc_port, "grpc_servicer_functions": list(SERVICERS)},
        tracing_config=tracing_config(),
    )
    try:
        try:
            start()
        except (ray.exceptions.RayActorError, TimeoutError):
            start()  # the controller, which is there now, has replaced a proxy that was too slow
        _run(config)
        if not joined():
            _await(door)
        yield
    finally:
        _end()


def _run(config: ServeConfig) -> None:
    from ray import serve

    from btray.serve.app import NAME, build

    try:
        serve.run(build(config), name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise UserError(f"no replica starts: {_reason(error)}") from None


def _await(door: Door) -> None:
    """Return once the ports are open; raises UserError where they stay closed."""
    end = time.monotonic() + _OPEN_S
    for port in (door.http_port, door.grpc_port):
        while True:
            try:
                socket.create_connection((_reached(door.host), port), timeout=5).close()
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise UserError(f"{door.host}:{port} does not open: {error}") from None
                time.sleep(0.1)


def _reached(host: str) -> str:
    """Return the address at which this machine reaches itself."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is compared


def _end() -> None:
    """Answer what is in work and go, leaving another's cluster its other applications."""
    import ray
    from ray import serve

    from btray.cluster import joined
    from btray.serve.app import NAME

    if joined():
        serve.delete(NAME)
        return
    # Ray prints the end of its own controller, which it kills, as a failure.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        serve.shutdown()
        ray.shutdown()


def _reason(error: RuntimeError) -> str:
    """Return why replicas do not start, as Ray Serve's controller knows it, in one line."""
    from ray import serve

    from btray.serve.app import NAME

    applications = serve.status().applications
    deployments = applications[NAME].deployments.values() if NAME in applications else ()
    told = [line for one in deployments for line in one.message.splitlines() if line.strip()]
    return told[-1].strip() if told else str(error)


def wait_for_signal() -> None:
    """Return once SIGTERM or SIGINT comes."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    told.wait()
