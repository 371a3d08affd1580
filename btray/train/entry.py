"""What Ray Train starts in every training process; loads nothing before it is there.

The controller, too, loads this module, and needs neither torch nor the network.
"""

from typing import Any

import ray
import ray.train


def train_worker(settings: dict[str, Any]) -> None:
    """Train on this rank's shard until the epochs, or the patience, are used up."""
    from btray.train.worker import Worker

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    node = ray.get_runtime_context().get_node_id()
    rows = ray.get(settings["board"].rows.remote(rank, node, workers))
    if rows is not None:
        references = {name: settings[name] for name in ("weights", "teacher")}
        held = {k: None if v is None else ray.get(v) for k, v in references.items()}
        Worker(**{**settings, **held}, source=rows).run()
