"""What a person sees while a cross-validation trains: a bar for every fold at work."""

from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from btray.train.board import Update


class FoldsDisplay:
    """Live bars on a terminal and one line an epoch of each fold everywhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("fold {task.fields[fold]}  epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  left at most {task.fields[left]}"),
            console=console,
        )
        self.live = Live(self.bar, console=console, transient=True, refresh_per_second=4)
        self.tasks: dict[int, TaskID] = {}
        self.run: str | None = None

    def __enter__(self) -> "FoldsDisplay":
        if self.console.is_terminal:
            self.live.start()
        self.console.print("starting the folds …", style="dim")
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, update: Update) -> None:
        """Take one piece of news."""
        if "fold" not in update:
            self.run = update["uri"]
            self.console.print(f"run: {self.run}", style="dim", markup=False)
        elif update["kind"] == "attempt":
            again = f"going on with epoch {update['epoch'] + 1}" if update["epoch"] else "begins"
            self.console.print(f"fold {update['fold']} {again}", style="dim")
        elif update["kind"] == "step":
            self._step(update)
        elif update["kind"] == "epoch":
            self._epoch(update)

    def _step(self, update: Update) -> None:
        fold = update["fold"]
        if fold not in self.tasks:
            self.tasks[fold] = self.bar.add_task("", fold=fold, epoch="1", loss=0.0, left="?")
        self.bar.update(
            self.tasks[fold],
            total=update["steps"],
            completed=update["step"],
            epoch=f"{update['epoch'] + 1}/{update['epochs']}",
            loss=update["loss"],
            left=str(timedelta(seconds=round(update["seconds_left"]))),
        )

    def _epoch(self, update: Update) -> None:
        metrics = update["metrics"]
        self.console.print(
            f"fold {update['fold']}  epoch {update['epoch'] + 1:>3}/{update['epochs']}  "
            f"train loss {metrics['train_loss']:.4f}  "
            f"validation loss {metrics['val_loss']:.4f}  "
            f"accuracy {metrics['val_accuracy']:.4f}  macro-F1 {metrics['val_macro_f1']:.4f}",
            highlight=False,
        )
