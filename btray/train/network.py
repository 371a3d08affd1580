"""The process group of the training workers, each at its node's interface of the network."""

import logging
import os
from collections.abc import Callable
from typing import Any

import psutil
import ray
from ray._common.network_utils import build_address
from ray._private.ray_constants import env_integer
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import (
    DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
)
from ray.train.v2._internal.util import TrainingFramework

_VARIABLE = "GLOO_SOCKET_IFNAME"
_log = logging.getLogger("ray.train")  # which Ray writes to a file where this runs


def use_node_interface() -> None:
    """Let gloo use the interface of the address by which the cluster knows this node.

    By itself it takes the address that the host's name stands for, which is a loopback one on
    Debian and its kin, and then no other host reaches it. What `GLOO_SOCKET_IFNAME` says
    already stands; NCCL leaves loopback out by itself.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            os.environ.setdefault(_VARIABLE, name)


def _join(backend: str, rank: int, workers: int, url: str) -> None:
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    use_node_interface()
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, workers, url)


def _leave(workers: int) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=workers > 1)


class _Group(Backend):
    """As Ray Train's own for torch, without torch in the controller: 1.9 s of its computing."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:  # noqa: ANN401
        workers = len(worker_group)
        url = f"tcp://{build_address(*worker_group.execute_single(0, get_address_and_port))}"
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend_config.backend, rank, workers, url
                )
                for rank in range(workers)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:  # noqa: ANN401, ARG002
        left = worker_group.execute_async(_leave, len(worker_group))
        longest = env_integer(
            TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
        )
        try:
            ray.get(left, timeout=longest)
        except GetTimeoutError:
            _log.warning("workers did not leave the process group within %d s", longest)


class GroupConfig(BackendConfig):
    """What TorchTrainer takes for its `torch_config`: gloo on CPUs, NCCL on GPUs."""

    backend: str | None = None
    """Set by TorchTrainer."""

    @property
    def backend_cls(self) -> type[_Group]:
        """What sets the group up."""
        return _Group

    @property
    def train_func_context(self) -> Callable[[], Any]:
        """What the training function runs in: on its own GPU."""
        from ray.train.torch.config import TorchConfigContextManager

        return TorchConfigContextManager

    def to_dict(self) -> dict[str, Any]:
        """Return what Ray shows of it."""
        return {"backend": self.backend, "init_method": "tcp"}

    @property
    def framework(self) -> TrainingFramework:
        """What Ray calls it."""
        return TrainingFramework.TORCH
