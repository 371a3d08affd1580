"""A cluster's job server: found, let in by its token, and of our versions."""

import json
import logging
import os
import platform
import socket
from typing import TYPE_CHECKING, Any, Final
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from btray.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
"""Where `ray dashboard` and a local head put it."""
_VARIABLES: Final = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_TIMEOUT_S: Final = 10.0


def job_server(address: str | None) -> str:
    """Return the URL of the job server: as given, else what Ray's variables name, else local.

    Raises:
        UserError: not an http(s) URL.

    """
    given = [("--address", address), *((name, os.environ.get(name)) for name in _VARIABLES)]
    for origin, url in given:
        if not url or (origin != "--address" and "://" not in url):
            continue  # RAY_ADDRESS=host:6379 names the cluster's other door
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UserError(f"{origin} {url}: give the job server's URL, such as {DEFAULT_ADDRESS}")
        return url.rstrip("/")
    return DEFAULT_ADDRESS


def connect(address: str | None) -> "JobSubmissionClient":
    """Return a client of a job server that answers, lets us in, and has our versions.

    Raises:
        UserError: any of these is not so.

    """
    url = job_server(address)
    _knock(url)
    _use_token(url)
    client = open_client(url)
    check_versions(url, *cluster_versions(client))
    return client


def _knock(url: str) -> None:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"{url}: nothing answers ({error.strerror or error}); a cluster's job server is "
            "private: open a way to it with `ray dashboard cluster.yaml` or `kubectl port-forward`"
        ) from None


def _use_token(url: str) -> None:
    """Turn Ray's token authentication on where the cluster has it, before Ray is loaded."""
    try:
        with urlopen(f"{url}/api/authentication_mode", timeout=_TIMEOUT_S) as answer:  # noqa: S310
            mode = json.load(answer).get("authentication_mode")
    except (URLError, OSError, ValueError, AttributeError) as error:
        raise UserError(f"{url}: not a Ray dashboard ({error})") from None
    if mode == "token" and not os.environ.get("RAY_AUTH_MODE"):
        os.environ["RAY_AUTH_MODE"] = "token"


def open_client(url: str) -> "JobSubmissionClient":
    """Return Ray's client.

    Raises:
        UserError: no token or the wrong one, or no job server.

    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # or else RAY_ADDRESS would win over ours
    try:
        return JobSubmissionClient(url)
    except AuthenticationError as error:
        raise UserError(f"{url}: {_token_advice(str(error))}") from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{url}: no job server of Ray answers there ({reason})") from None


def _token_advice(error: str) -> str:
    wrong = "Forbidden" in error or "failed" in error.splitlines()[0]
    said = "the cluster refuses this token" if wrong else "the cluster asks for a token"
    return (
        f"{said}; put the cluster's into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
    )


def cluster_versions(client: "JobSubmissionClient") -> tuple[str, str | None]:
    """Return the cluster's versions of Ray and of Python; None where it does not say."""
    ray_version = _get(client, "/api/version").get("ray_version", "?")
    python = _get(client, "/api/v0/cluster_metadata").get("data", {}).get("pythonVersion")
    return ray_version, python


def _get(client: "JobSubmissionClient", path: str) -> dict[str, Any]:
    answer = client._do_request("GET", path)
    if answer.status_code != 200:
        return {}
    found: dict[str, Any] = answer.json()
    return found


def check_versions(url: str, ray_version: str, python: str | None) -> None:
    """Raise UserError unless the cluster has this process's Ray and (minor) Python."""
    import ray

    own = platform.python_version()
    same_python = python is None or python.split(".")[:2] == own.split(".")[:2]
    if ray_version == ray.__version__ and same_python:
        return
    raise UserError(
        f"here are Ray {ray.__version__} and Python {own}, at {url} Ray {ray_version} and Python "
        f"{python or 'of unknown version'}: use a client of the cluster's versions"
    )
