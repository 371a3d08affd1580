"""Sweeps that take seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from btray.config import resolve_as
from btray.tune.settings import SweepConfig


@pytest.fixture
def make_sweep(dataset_path: Path, tmp_path: Path) -> Callable[..., SweepConfig]:
    def make(name: str = "sweep", overrides: tuple[str, ...] = (), **tune: object) -> SweepConfig:
        tree = {
            "seed": 1,
            "image": {"size": 32},
            "data": {"dataset": str(dataset_path), "batch_size": 16},
            "train": {"epochs": 3, "patience": 0},
            "run": {"storage": str(tmp_path / "sweeps"), "name": name},
            "tune": {
                "trials": 3,
                "search": "random",
                "scheduler": "none",
                "space": {"train.learning_rate": "loguniform(1e-4, 1e-2)"},
                **tune,
            },
        }
        return resolve_as(SweepConfig, tree, overrides)

    return make
