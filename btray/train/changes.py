"""What may change when a run goes on, and what may not: it would be another run."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from btray.config import Config, resolve_config
from btray.errors import UserError

SAFE: Final = frozenset(
    {
        "data.dataset",  # its rows' hash is compared
        "data.cache_limit",
        "data.cache_dir",
        "data.node_labels",
        "train.epochs",
        "train.patience",
        "train.workers",
        "train.cpus_per_worker",
        "train.gpu",
        "train.max_failures",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "tracking.enabled",
        "tracking.uri",
        "tracking.experiment",
    }
)
"""Settings that say how long, where and how safely a run trains, not what it learns from."""
_REMARKS: Final = {
    "train.epochs": "; the learning rate's schedule is stretched or shortened from here on",
    "train.workers": "; with another number of workers, numbers differ in the last digits",
}


@dataclass(frozen=True)
class Changes:
    """Settings given to a run that goes on."""

    tree: dict[str, Any] = field(default_factory=dict)
    """What a file sets."""
    overrides: Sequence[str] = ()
    """What the command line sets."""

    def apply(self, tree: Mapping[str, Any]) -> Config:
        """Lay the changes over a run's own settings; raises UserError as `resolve_config` does."""
        merged = copy.deepcopy(dict(tree))
        _merge(merged, self.tree)
        return resolve_config(merged, self.overrides)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict) and below[key]:
            _merge(below[key], value)
        else:
            below[key] = copy.deepcopy(value)


def compare(before: Config, after: Config) -> list[str]:
    """Return a line for every setting that differs.

    Raises:
        UserError: one of them must not change; all of these are named.

    """
    old, new = _leaves(before), _leaves(after)
    differing = [key for key in new if old[key] != new[key]]
    lines = {key: f"{key}: {old[key]} -> {new[key]}{_REMARKS.get(key, '')}" for key in differing}
    refused = [lines[key] for key in differing if key not in SAFE]
    if refused:
        raise UserError(
            f"--resume: these would make it another run: {', '.join(refused)}; "
            "leave them as they are or start a new run"
        )
    return list(lines.values())


def _leaves(config: Config) -> dict[str, Any]:
    """Return every setting under its dotted path; the two levels the tree has."""
    tree = config.model_dump(mode="json")
    leaves = {}
    for name, section in tree.items():
        if isinstance(section, dict):
            leaves.update({f"{name}.{key}": value for key, value in section.items()})
        else:
            leaves[name] = section
    return leaves
