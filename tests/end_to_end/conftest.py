"""The settings of a run that takes seconds, and processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def options(**settings: object) -> list[str]:
    """`--set` options: two workers, small images, one epoch, and what is asked for."""
    tree = {
        "data.batch_size": 16,
        "image.size": 32,
        "train.workers": 2,
        "train.epochs": 1,
        "run.name": "run",
        **settings,
    }
    return [part for key, value in tree.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def train_options():
    return options


@pytest.fixture
def run_python():
    """Run Python in a process of its own, from the checkout, and return what came of it."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        import os

        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=CHECKOUT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )

    return run
