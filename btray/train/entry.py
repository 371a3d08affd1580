"""What Ray Train starts in every training process; loads nothing before it is there.

The controller, too, loads this module, and needs neither torch nor the network.
"""

from typing import Any

import ray
import ray.train


def train_worker(settings: dict[str, Any]) -> None:
    """Train on this rank's shard until the epochs, or the patience, are used up."""
    from btray.train.worker import Worker

    rank = ray.train.get_context().get_world_rank()
    node = ray.get_runtime_context().get_node_id()
    rows = ray.get(settings["board"].rows.remote(rank, node))
    if rows is not None:
        Worker(**settings, source=rows).run()
