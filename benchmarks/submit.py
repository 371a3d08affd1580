"""Seconds from `btray submit` to the first line of the job's log, against `ray job submit`.

Usage: python benchmarks/submit.py [--rounds 7]

Both send the same command and the same working directory to the job server of a cluster of this
machine, in turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray

from btray.cluster import connect

COMMAND = ("data", "--help")
FIRST = "Runtime env is setting up"


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    connect()
    url = f"http://{ray.get_runtime_context().worker.node.address_info['webui_url']}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.yaml").write_text("train: {epochs: 1}\n")
        where = ("--address", url, "--working-dir", folder)
        plain = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", *where, "--"]
        plain += [sys.executable, "-m", "btray", *COMMAND]
        own = [sys.executable, "-m", "btray", "submit", *where, "--python", sys.executable]
        own += COMMAND
        turns = [(first_line(plain), first_line(own)) for _ in range(rounds + 1)][1:]
    figures = {
        "ray_job_submit_seconds": statistics.median(ray_ for ray_, _ in turns),
        "btray_submit_seconds": statistics.median(own_ for _, own_ in turns),
    }
    figures["ratio"] = figures["btray_submit_seconds"] / figures["ray_job_submit_seconds"]
    for key, value in figures.items():
        print(f"{key:28}{value:8.2f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def first_line(command: list[str]) -> float:
    """Return the seconds until a command shows what the job said first."""
    started = time.perf_counter()
    shown, seconds = [], 0.0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            shown.append(line)
            if FIRST in line and not seconds:
                seconds = time.perf_counter() - started
    if not seconds or process.returncode:
        sys.exit("".join(shown))
    return seconds


if __name__ == "__main__":
    main()
