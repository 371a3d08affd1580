"""What training workers are told while they train, and agree on: to go on, to move, to stop."""

import threading
from enum import IntEnum
from typing import Any

import ray
import torch
from ray.train.v2._internal.execution.context import get_train_context

from btray.train.stopping import terminated

_GPU_STEPS = 8
"""Steps between two agreements where each one waits for the GPU."""


class Order(IntEnum):
    """What a worker is to do; of two, the greater one."""

    GO_ON = 0
    MOVE = 1
    """The node or process of a worker is going: all go on elsewhere, from this step."""
    STOP = 2
    """The run is to end, and to be resumed by a person."""


class Orders:
    """What this rank was told, and what all ranks agree on."""

    def __init__(self, board: Any, rank: int, world_size: int, device: torch.device) -> None:  # noqa: ANN401
        self.rank, self.world_size, self.device = rank, world_size, device
        self._stop = threading.Event()
        if rank == 0:
            threading.Thread(target=self._listen, args=(board,), daemon=True).start()

    def _listen(self, board: Any) -> None:  # noqa: ANN401
        ray.get(board.stopped.remote())
        self._stop.set()

    def agreed(self, step: int) -> Order:
        """Return the greatest order any rank was given; every rank asks after the same steps."""
        if self.device.type == "cuda" and step % _GPU_STEPS:
            return Order.GO_ON
        return self.agreed_now()

    def agreed_now(self) -> Order:
        """Return the same whatever the step."""
        mine = self._mine()
        if self.world_size == 1:
            return mine
        greatest = torch.tensor(int(mine), device=self.device)
        torch.distributed.all_reduce(greatest, torch.distributed.ReduceOp.MAX)
        return Order(int(greatest))

    def _mine(self) -> Order:
        if self._stop.is_set():
            return Order.STOP
        moving = terminated() or _preemption() is not None
        return Order.MOVE if moving else Order.GO_ON


def _preemption() -> Any:  # noqa: ANN401 - Ray's PreemptionInfo, or None
    """Read what Ray's watcher left in this process.

    The public `ray.train.get_preemption_info` is a barrier over an actor: too dear every step.
    """
    return get_train_context().preemption_context.preemption_info
