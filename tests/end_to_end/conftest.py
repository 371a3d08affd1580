"""The settings of a run that takes seconds, and processes of their own."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture(scope="session")
def image():
    """A PNG of noise that any bundle has an answer to."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
