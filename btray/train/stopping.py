"""How training workers learn that they must leave: a checkpoint first, at the very step.

The command's SIGTERM reaches them over the board, the SIGTERM of a spot node's processes
directly, and a node that Ray drains by Ray Train's own watcher (`btray.train.orders`). Ray Train's
controller loads this module too, and needs no torch: 1.9 s of computing.
"""

import signal
import threading

from ray.train.v2._internal.execution.callback import WorkerCallback

_terminated = threading.Event()


def terminated() -> bool:
    """Say whether this process got SIGTERM."""
    return _terminated.is_set()


class TerminationCallback(WorkerCallback):
    """Lets SIGTERM ask a training worker to leave rather than end it at once.

    Ray Train calls it in the worker's main thread, where alone Python takes a handler; the
    training function runs in another.
    """

    def after_init_train_context(self) -> None:
        """Install the handler; a second SIGTERM ends the process."""
        signal.signal(signal.SIGTERM, _take_note)


def _take_note(number: int, _frame: object) -> None:
    _terminated.set()
    signal.signal(number, signal.SIG_DFL)
