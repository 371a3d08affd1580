"""Bundles with evaluations of known quality, and a real MLflow server."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from btray.core.bundle import Bundle
from btray.core.labels import CLASS_NAMES

ROWS = 200


@pytest.fixture(autouse=True)
def no_store_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def make_evaluation(tmp_path: Path) -> Callable[..., Path]:
    """Write what `btray evaluate` leaves, with a number of wrong answers."""

    def make(bundle: Bundle, wrong: int, split: str = "test", first_row: int = 0) -> Path:
        folder = tmp_path / f"evaluation-{bundle.version}-{split}"
        folder.mkdir(exist_ok=True)
        numbers = np.arange(ROWS) % len(CLASS_NAMES)
        said = np.where(np.arange(ROWS) < wrong, (numbers + 1) % len(CLASS_NAMES), numbers)
        names = np.array(CLASS_NAMES)
        table = pa.table(
            {
                "sha256": [f"{row + first_row:064x}" for row in range(ROWS)],
                "group": [f"g{row}" for row in range(ROWS)],
                "label": names[numbers],
                "class": names[said],
            }
        )
        pyarrow.parquet.write_table(table, folder / "predictions.parquet")
        metrics = {
            "split": split,
            "accuracy": 1 - wrong / ROWS,
            "macro_f1": 1 - wrong / ROWS,
            "macro_auroc": None,
            "model": {"name": bundle.card.name, "version": bundle.version},
            "dataset": {"content_hash": "0" * 64, "same_as_trained_on": True},
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return make


class Server:
    """`mlflow server` on loopback, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start uvicorn with MLflow's application, as `mlflow server` does, and wait for it."""
        environment = os.environ | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.folder
            )
        for _ in range(3000):
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        """Kill the server and what it started, by their ids."""
        import psutil

        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        family = [parent, *parent.children(recursive=True)]
        for process in family:
            process.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=10)
        self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    one = Server(folder)
    one.start()
    yield one
    if one.process is not None:
        one.kill()
