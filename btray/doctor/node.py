"""What one node of a cluster says of itself."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from btray.core import files
from btray.errors import UserError

_CONNECT_S: Final = 5.0
_CUDA_S: Final = 60.0
_CUDA: Final = """
import json, torch
found = torch.cuda.device_count()
nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None
print(json.dumps([found, torch.version.cuda, nccl]))
"""


@dataclass(frozen=True)
class Questions:
    """What every node is asked."""

    storage: str
    """Folder or URI that runs are kept in."""
    marker: str
    """Name of a file there which the asking process wrote."""
    doors: tuple[tuple[str, int], ...]
    """Hosts and ports that must be reached from every node."""


@dataclass(frozen=True)
class NodeFacts:
    """What a node answered; bytes and seconds."""

    host: str
    ray: str
    python: str
    btray: str
    torch: str | None
    clock: float
    """Its clock, in seconds since 1970, at the time of answering."""
    storage_error: str = ""
    sees_marker: bool = True
    closed_doors: tuple[str, ...] = ()
    disk_total: int = 0
    disk_free: int = 0
    shared_memory: int = 0
    gpus_of_driver: int = 0
    gpus_of_torch: int | None = None
    cuda: str | None = None
    nccl: str | None = None
    gpu_error: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    clusters: tuple[str, ...] = ()
    """Addresses of other Ray clusters with a process on the node."""


def look(questions: Questions) -> NodeFacts:
    """Answer for the node that this process runs on."""
    import ray

    from btray.version import __version__

    error = _storage_error(questions.storage)
    temporary = ray.get_runtime_context().get_temp_dir() if ray.is_initialized() else "/tmp"  # noqa: S108
    disk = shutil.disk_usage(temporary)
    gpus = _gpus_of_driver()
    of_torch, cuda, nccl, gpu_error = _cuda() if gpus else (None, None, None, "")
    return NodeFacts(
        host=socket.gethostname(),
        ray=ray.__version__,
        python=platform.python_version(),
        btray=__version__,
        torch=_version("torch"),
        storage_error=error,
        sees_marker=not error and files.exists(files.join(questions.storage, questions.marker)),
        closed_doors=_closed(questions.doors),
        disk_total=disk.total,
        disk_free=disk.free,
        shared_memory=_shared_memory(),
        gpus_of_driver=gpus,
        gpus_of_torch=of_torch,
        cuda=cuda,
        nccl=nccl,
        gpu_error=gpu_error,
        clusters=_clusters(),
        clock=time.time(),
    )


def _clusters() -> tuple[str, ...]:
    import ray
    from ray._private.services import _find_address_from_flag  # the public one keeps its answer

    own = ray.get_runtime_context().gcs_address if ray.is_initialized() else ""
    return tuple(sorted(_find_address_from_flag("--gcs-address") - {own}))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _storage_error(storage: str) -> str:
    """Write a small file, read it and remove it again; return what went wrong, or ''."""
    name = f".btray-doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        write_file(storage, name, b"btray")
        if files.read(files.join(storage, name)) != b"btray":
            return "what was written is not what is read"
        remove_file(storage, name)
    except UserError as error:
        return str(error)
    except OSError as error:
        return files.reason(error)
    return ""


def write_file(storage: str, name: str, content: bytes) -> None:
    """Write a file into a folder or under a URI, which is made if it is a folder."""
    filesystem, path = files.resolve(storage)
    if "://" not in storage:
        filesystem.create_dir(path, recursive=True)
    with filesystem.open_output_stream(f"{path}/{name}") as stream:
        stream.write(content)


def remove_file(storage: str, name: str) -> None:
    """Remove it again."""
    filesystem, path = files.resolve(storage)
    filesystem.delete_file(f"{path}/{name}")


def _closed(doors: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    closed = []
    for host, port in doors:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
        except OSError as error:
            closed.append(f"{host}:{port} ({error.strerror or error})")
    return tuple(closed)


def _shared_memory() -> int:
    """Return the bytes of /dev/shm, where Ray's object store lies; 0 where there is none."""
    shared = Path("/dev/shm")  # noqa: S108 - it is looked at only
    return shutil.disk_usage(shared).total if shared.is_dir() else 0


def _gpus_of_driver() -> int:
    """Return how many GPUs NVIDIA's driver shows."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    done = subprocess.run(  # noqa: S603 - a fixed command
        [command, "--list-gpus"], capture_output=True, text=True, timeout=_CUDA_S, check=False
    )
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def _cuda() -> tuple[int | None, str | None, str | None, str]:
    """Ask torch in a process that sees all GPUs: Ray hides them from a task that asks for none."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(  # noqa: S603 - this Python and our own lines
            [sys.executable, "-c", _CUDA],
            capture_output=True,
            text=True,
            timeout=_CUDA_S,
            check=True,
            env=environment,
        )
    except (subprocess.SubprocessError, OSError) as error:
        return None, None, None, str(error).splitlines()[0]
    found, cuda, nccl = json.loads(done.stdout.splitlines()[-1])
    return found, cuda, nccl, ""
