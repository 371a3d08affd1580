"""Ray, started or joined once, and its noise kept out of the person's terminal."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import ray

from btray.errors import UserError

DATA_CPUS: Final = 2
"""Logical CPUs a local cluster has beyond the machine's cores, so that reading and decoding
go on while training workers hold every core."""


def connect() -> None:
    """Join the cluster `RAY_ADDRESS` names, or start one on this machine; idempotent.

    Raises:
        UserError: no cluster answers at `RAY_ADDRESS`.

    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A failed or finished worker group is noticed within this time; the default is 2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # A node that goes is noticed within this time; the default is 5 s.
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    address = os.environ.get("RAY_ADDRESS", "local")
    if address != "local":
        _join(address)
        return
    _init(address="local", num_cpus=local_cores() + DATA_CPUS, dashboard_host="127.0.0.1")


def _init(**options: Any) -> None:  # noqa: ANN401 - what ray.init takes
    """Start Ray or join it; what it has to say goes to the log and not, as it would, to stdout."""
    # There with log_to_driver=False too: news of the cluster, such as a worker's end for want of
    # memory. stdout is for a command's result.
    ray._private.worker.print_to_stdstream = _log
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


def _log(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:  # noqa: ARG001 - Ray's
    for line in data["lines"]:
        logging.getLogger("btray").warning("Ray: %s", line)


def joined() -> bool:
    """Say whether the connected cluster is another's, which nodes may join."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


def _join(address: str) -> None:
    try:
        _knock(address)
        _init(address=address)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster can be joined there ({reason}); "
            "start one with `ray start --head`, or unset RAY_ADDRESS; a cluster that asks for a "
            "token needs RAY_AUTH_MODE=token"
        ) from None


def _knock(address: str) -> None:
    """Raise OSError when nothing listens at host:port: Ray itself would wait for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def asked_for(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Have the cluster's autoscaler, if it has one, bring nodes for all of this meanwhile."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        yield
    finally:
        request_resources(bundles=[])


def usable_cores() -> int:
    """Return the connected cluster's CPUs less those kept for reading and decoding."""
    return max(1, int(ray.cluster_resources().get("CPU", 0)) - DATA_CPUS)


def smallest_object_store() -> int:
    """Return the bytes of the smallest object store of the connected cluster's nodes."""
    return int(min(node["Resources"].get("object_store_memory", 0) for node in _nodes()))


def require_node(labels: Mapping[str, str]) -> None:
    """Raise UserError unless a live node with CPUs has all of some labels."""
    found = [node["Labels"] for node in _nodes() if node["Resources"].get("CPU")]
    if any(labels.items() <= node.items() for node in found):
        return
    if not found:
        raise UserError(
            "the cluster has no node with CPUs; wait until one has joined: `ray status`"
        )
    wanted = ", ".join(f"{key}={value}" for key, value in labels.items())
    keys = {key for node in found for key in node if not key.startswith("ray.io/")}
    raise UserError(
        f"data.node_labels: no live node has {wanted}; "
        f"the nodes' labels: {', '.join(sorted(keys)) or 'none'}; start one with "
        f"`ray start --labels {wanted.replace(', ', ',')}` or change data.node_labels"
    )


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def local_cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0))


class _LogFile(logging.FileHandler):
    """A log that a full disk ends, and not the run along with it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Leave the line out: the run itself says why it cannot go on."""

    def close(self) -> None:
        """Let the file go, with its last lines if they can be written."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Send btray's and all of Ray's driver-side log lines to a file, not to the terminal."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("btray", "ray", "ray.data", "ray.train")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        handler.close()
