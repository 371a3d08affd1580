import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        # Ray Train's controller loads these before it starts the workers.
        ("network, stopping, checkpoints, storage, entry", ("torch", "timm", "sklearn")),
        # The command loads these before the first step.
        ("folds, trainer", ("sklearn", "matplotlib", "mlflow")),
    ],
)
def test_what_starts_a_run_loads_nothing_that_takes_seconds_and_is_not_needed(modules, absent):
    names = ", ".join(f"btray.train.{name}" for name in modules.split(", "))
    code = f"import sys, {names}; print([m for m in {absent} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
