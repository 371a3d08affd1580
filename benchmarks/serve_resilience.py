"""What a server does when replicas are killed, load comes and goes, and time passes.

Usage: python benchmarks/serve_resilience.py [--parts kill scale soak] [--soak-seconds 600]
           [--picture FILE.png]

kill   a replica is killed every 5 s for a minute under load: what share of requests failed, how
scale  no replica, one, four and none again, as the load steps up and down: replicas, latency and
       errors over time, and how long the first answer takes from a cold start
soak   70 % of what it can do: how memory and open files grow
The bundle is that of `benchmarks/serve.py`; arrivals are at random.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure
from serve import free_port, make_model, running

from btray.serve.load import Plan, Sample, Step, errors_by_reason, run_load
from btray.serve.load_clients import HttpClient
from btray.serve.load_images import draw_images
from btray.serve.load_report import summarise

PARTS = ("kill", "scale", "soak")


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["kill", "scale"])
    parser.add_argument("--soak-seconds", type=float, default=600.0)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    images = draw_images(32)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle, _ = make_model(folder)
        if "kill" in options.parts:
            kill(figures, bundle, folder, images)
        if "scale" in options.parts:
            scale(figures, bundle, folder, images, options.picture)
        if "soak" in options.parts:
            soak(figures, bundle, folder, images, options.soak_seconds)
    for name, value in figures.items():
        print(f"{name:40}{value:12.3f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


@contextmanager
def server(
    bundle: Path, folder: Path, *options: str
) -> Iterator[tuple[str, Callable[[], list[psutil.Process]]]]:
    """Run `btray serve`; give its URL and a function that finds its replicas' processes."""
    port = free_port()
    command = [sys.executable, "-m", "btray", "serve", str(bundle), "--http-port", str(port)]
    command += ["--grpc-port", str(free_port()), *options]
    environment = os.environ | {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    url = f"http://127.0.0.1:{port}"
    ready = f"{url}/-/healthz" if "0.." in " ".join(options) else f"{url}/v2/health/ready"
    with running(command, environment, folder, ready) as process:
        yield url, lambda: replicas_of(process.pid)


def replicas_of(pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "ServeReplica" in process.name():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def every(seconds: float, work: Callable[[], None]) -> tuple[threading.Thread, threading.Event]:
    """Do something again and again in a thread, until the event is set."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, over


def kill(figures: dict[str, float], bundle: Path, folder: Path, images: list[bytes]) -> None:
    with server(bundle, folder, "--replicas", "2") as (url, replicas):
        killed = []

        def strike() -> None:
            alive = replicas()
            if len(alive) > 1:  # one is left, as when one node of several goes
                alive[0].kill()
                killed.append(alive[0].pid)

        plan = Plan(connections=64, duration=60.0, steps=(Step(60.0, 60.0),), warmup=3.0)
        thread, over = every(5.0, strike)
        samples = run_load(HttpClient(url, images), plan)
        over.set()
        thread.join()
    report(figures, "kill", url, plan, samples)
    figures["kill_replicas_killed"] = len(killed)
    reasons = errors_by_reason(samples)
    figures["kill_not_retryable"] = sum(
        count for reason, count in reasons.items() if not reason.startswith("503")
    )
    print("kill: errors", dict(reasons), flush=True)


def scale(
    figures: dict[str, float], bundle: Path, folder: Path, images: list[bytes], picture: Path | None
) -> None:
    options = ("--replicas", "0..4", "--set", "replicas.target_ongoing=2")
    options += ("--set", "replicas.downscale_delay_s=10", "--set", "replicas.upscale_delay_s=1")
    with server(bundle, folder, *options) as (url, replicas):
        series: list[tuple[float, int]] = []
        begun = time.monotonic()
        plan = Plan(connections=1, duration=1.0, warmup=0.0, timeout=60.0)
        (first, *_) = run_load(HttpClient(url, images), plan)
        figures["scale_cold_start_seconds"] = first.ended - first.due
        steps = (Step(20.0, 10.0), Step(400.0, 30.0), Step(20.0, 20.0))
        plan = Plan(connections=256, duration=60.0, steps=steps, warmup=0.0, timeout=30.0)
        thread, over = every(
            0.5, lambda: series.append((time.monotonic() - start, len(replicas())))
        )
        start = time.monotonic()
        samples = run_load(HttpClient(url, images), plan)
        end = time.monotonic() + 90
        while replicas() and time.monotonic() < end:
            time.sleep(0.5)
        over.set()
        thread.join()
        figures["scale_replicas_at_the_end"] = len(replicas())
    report(figures, "scale", url, plan, samples)
    figures["scale_most_replicas"] = max(count for _, count in series)
    figures["scale_total_seconds"] = time.monotonic() - begun
    if picture is not None:
        draw(summarise(url, plan, samples), series).savefig(picture, dpi=120)


def draw(found: dict[str, Any], series: list[tuple[float, int]]) -> Figure:
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, middle, bottom = figure.subplots(3, sharex=True)
    seconds = [row["second"] for row in found["seconds"]]
    top.step(*zip(*series, strict=True), where="post", color="#0072b2")
    top.set_ylabel("replicas")
    for name, colour in (("p50", "#0072b2"), ("p99", "#d55e00")):
        values = [
            row[f"{name}_ms"] if row[f"{name}_ms"] is not None else np.nan
            for row in found["seconds"]
        ]
        middle.plot(seconds, values, color=colour, label=name)
    middle.set_ylabel("latency, ms")
    middle.set_yscale("log")
    middle.legend()
    bottom.plot(seconds, [row["requests"] for row in found["seconds"]], color="#777777")
    bottom.plot(seconds, [row["errors"] for row in found["seconds"]], color="#d55e00")
    bottom.set_ylabel("requests, errors a second")
    bottom.set_xlabel("seconds")
    return figure


def soak(
    figures: dict[str, float], bundle: Path, folder: Path, images: list[bytes], seconds: float
) -> None:
    with server(bundle, folder, "--replicas", "1") as (url, replicas):
        client = HttpClient(url, images)
        plan = Plan(connections=32, duration=5.0, warmup=3.0)
        most = summarise(url, plan, run_load(client, plan))["requests_per_second"]
        (replica,) = replicas()
        series: list[tuple[float, int, int]] = []

        def look() -> None:
            series.append((time.monotonic(), replica.memory_info().rss, replica.num_fds()))

        thread, over = every(2.0, look)
        plan = Plan(
            connections=64, duration=seconds, steps=(Step(0.7 * most, seconds),), warmup=5.0
        )
        samples = run_load(client, plan)
        over.set()
        thread.join()
    report(figures, "soak", url, plan, samples)
    rows = np.array(series[len(series) // 5 :])  # once it is warm
    slope = np.polyfit(rows[:, 0] - rows[0, 0], rows[:, 1], 1)[0]
    figures["soak_memory_mib"] = rows[-1, 1] / 2**20
    figures["soak_memory_mib_per_hour"] = slope * 3600 / 2**20
    figures["soak_files_first"], figures["soak_files_last"] = rows[0, 2], rows[-1, 2]


def report(
    figures: dict[str, float], part: str, url: str, plan: Plan, samples: list[Sample]
) -> None:
    found = summarise(url, plan, samples)
    figures[f"{part}_requests"] = found["requests"]
    figures[f"{part}_error_percent"] = found["error_percent"]
    for name in ("p50", "p99"):
        if found["latency_ms"][name] is not None:
            figures[f"{part}_{name}_ms"] = found["latency_ms"][name]


if __name__ == "__main__":
    main()
