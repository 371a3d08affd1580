"""What Ray Train starts in every training process; loads nothing before it is there.

The controller, too, loads this module, and needs neither torch nor the network.
"""

from typing import Any

import ray


def train_worker(settings: dict[str, Any]) -> None:
    """Train on this rank's shard until the epochs, or the patience, are used up."""
    from btray.train.worker import Worker

    blocks = ray.get(settings["board"].blocks.remote())
    if blocks is not None:
        Worker(**settings, blocks=blocks).run()
