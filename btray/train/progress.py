"""What a person sees while a run trains."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import ray
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from btray.train.board import Update

_log = logging.getLogger("btray")


class Display(Protocol):
    """Shows news of a run."""

    def show(self, update: Update) -> None:
        """Take one piece of news."""


class Displays:
    """Several displays as one."""

    def __init__(self, *displays: Display) -> None:
        self.displays = displays

    def show(self, update: Update) -> None:
        """Pass one piece of news to all of them."""
        for display in self.displays:
            display.show(update)


@dataclass
class News:
    """What was heard of a run that its result does not tell."""

    diverged: Update | None = None
    stopped: Update | None = None


@contextmanager
def follow(board: Any, display: Display | None) -> Iterator[News]:  # noqa: ANN401
    """Pass the board's news to a display, in a thread, while the body runs."""
    news, stop = News(), threading.Event()
    seen = 0

    def drain() -> None:
        nonlocal seen
        for update in ray.get(board.since.remote(seen)):
            seen += 1
            if update["kind"] != "step":
                _log.info("%s", _line(update))
            if update["kind"] == "diverged":
                news.diverged = update
            if update["kind"] == "stopped":
                news.stopped = update
            if display is not None:
                display.show(update)

    def poll() -> None:
        while not stop.wait(0.5):
            drain()

    thread = threading.Thread(target=poll, name="btray-progress", daemon=True)
    thread.start()
    try:
        yield news
        stop.set()
        thread.join()
        drain()
    finally:
        stop.set()
        thread.join()


def _line(update: Update) -> str:
    """Return a piece of news as the log tells it; epochs count from 1, as on the screen."""
    match update["kind"]:
        case "epoch":
            numbers = {k: v for k, v in update["metrics"].items() if k != "epoch"}
            scores = "  ".join(f"{name} {value:.6g}" for name, value in numbers.items())
            return f"epoch {update['epoch'] + 1}/{update['epochs']}  {scores}"
        case "attempt":
            workers = update["workers"]
            return f"{workers} workers begin with epoch {update['epoch'] + 1}"
        case "diverged":
            where = f"epoch {update['epoch'] + 1}, step {update['step'] + 1}"
            return f"diverged at {where}: loss {update['loss']}"
        case _:
            return str(update)


class ConsoleDisplay:
    """A live bar on a terminal and one line an epoch everywhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left at most {task.fields[left]}"),
            console=console,
        )
        self.task = self.bar.add_task("", epoch="1", loss=0.0, rate=0.0, left="?", visible=False)
        self.live = Live(self.bar, console=console, transient=True, refresh_per_second=4)
        self.attempts = self.steps = self.workers = 0
        self.run: str | None = None

    def __enter__(self) -> "ConsoleDisplay":
        if self.console.is_terminal:
            self.live.start()
        self.console.print("starting workers and decoding the data set …", style="dim")
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, update: Update) -> None:
        """Take one piece of news."""
        match update["kind"]:
            case "run":
                self.run = update["uri"]
                self.console.print(f"run: {self.run}", style="dim", markup=False)
            case "changed":
                self.console.print(f"changed: {update['reason']}", markup=False, highlight=False)
            case "waiting":
                self.console.print(
                    f"waiting for the cluster to grow: {update['reason']}", markup=False
                )
            case "attempt":
                self._attempt(update)
            case "step":
                self._step(update)
            case "epoch":
                self._epoch(update)

    def _attempt(self, update: Update) -> None:
        self.attempts += 1
        step = update["step"]
        if update["epoch"] or step or self.attempts > 1:
            reason = "workers replaced; " if self.attempts > 1 else ""
            within = f", step {step + 1}" if step else ""
            resized = self.workers and self.workers != update["workers"]
            number = f", now {update['workers']} workers" if resized else ""
            self.console.print(f"{reason}going on with epoch {update['epoch'] + 1}{within}{number}")
        self.workers = update["workers"]

    def _step(self, update: Update) -> None:
        self.steps += 1
        if self.steps == 1:
            self.console.print(
                f"first step taken; {update['steps']} steps an epoch, "
                f"{update['epochs']} epochs at most",
                style="dim",
            )
        self.bar.update(
            self.task,
            visible=True,
            total=update["steps"],
            completed=update["step"],
            epoch=f"{update['epoch'] + 1}/{update['epochs']}",
            loss=update["loss"],
            rate=update["images_per_second"],
            left=str(timedelta(seconds=round(update["seconds_left"]))),
        )

    def _epoch(self, update: Update) -> None:
        metrics = update["metrics"]
        self.console.print(
            f"epoch {update['epoch'] + 1:>3}/{update['epochs']}  "
            f"train loss {metrics['train_loss']:.4f}  "
            f"validation loss {metrics['val_loss']:.4f}  "
            f"accuracy {metrics['val_accuracy']:.4f}  "
            f"macro-F1 {metrics['val_macro_f1']:.4f}  "
            f"{metrics['images_per_second']:.0f} images/s",
            highlight=False,
        )
