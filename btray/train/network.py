"""The network interface over which training processes of several hosts talk."""

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

_VARIABLE = "GLOO_SOCKET_IFNAME"


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


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # a property returns it
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:  # noqa: ANN401
        worker_group.execute(use_node_interface)
        super().on_start(worker_group, backend_config)


class HostsConfig(TorchConfig):
    """Ray Train's process group, with every process at its node's interface."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """What sets the group up."""
        return _Backend
