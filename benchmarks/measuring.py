"""What several benchmarks need: a data set made larger, and a command watched while it runs."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from btray.data.dataset import MANIFEST, Dataset


def replicate(path: Path, copies: int) -> Dataset:
    """Repeat the rows of a data set in place, by copies of its Parquet files."""
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["rows"] *= copies
    for counts in manifest["counts"].values():
        counts.update({label: count * copies for label, count in counts.items()})
    (path / MANIFEST).write_text(json.dumps(manifest))
    for part in list((path / "rows").iterdir()):
        for copy in range(1, copies):
            shutil.copy(part, part.with_name(f"{part.stem}-{copy}.parquet"))
    return Dataset.open(str(path))


def folder_bytes(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@dataclass
class Watched:
    """A command that ran."""

    seconds: float = 0.0
    peak: int = 0
    """Most proportional set size of the command and all below it, shared memory counted once."""
    lines: list[tuple[float, str]] = field(default_factory=list)
    """What it said on stderr, and how many seconds after its start."""

    def when(self, start: str) -> float:
        """Return when it first said a line that starts so."""
        return next(seconds for seconds, line in self.lines if line.startswith(start))


def btray(*arguments: object, until: Callable[[Watched], bool] | None = None) -> Watched:
    """Run the command, sampling its memory; interrupt it once `until` says so."""
    command = [sys.executable, "-m", "btray", *map(str, arguments)]
    done, started = Watched(), time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:

        def listen() -> None:
            for line in process.stderr or ():
                done.lines.append((time.perf_counter() - started, line))

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        stopped = False
        while process.poll() is None:
            done.peak = max(done.peak, memory(process.pid))
            done.seconds = time.perf_counter() - started
            if until is not None and not stopped and until(done):
                process.send_signal(signal.SIGINT)
                stopped = True
            time.sleep(0.5)
        listener.join()
    if process.returncode and not stopped:
        sys.exit("".join(line for _, line in done.lines))
    done.seconds = time.perf_counter() - started
    return done


def memory(root: int) -> int:
    """Return the proportional set size of a process and of all below it, in bytes."""
    total = 0
    for process in [psutil.Process(root), *children(root)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total


def children(root: int) -> list[psutil.Process]:
    """Return all processes below one."""
    try:
        return psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
