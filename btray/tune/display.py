"""What a person sees of a sweep while it runs."""

from rich.console import Console
from rich.live import Live
from rich.table import Table

from btray.tune.outcome import LOWER_IS_BETTER, Trial

_SHOWN = 16
"""Trials in the table at most: those at work, then the best."""


class SweepDisplay:
    """A live table on a terminal and one line a finished trial everywhere."""

    def __init__(self, console: Console, metric: str) -> None:
        self.console, self.metric = console, metric
        self.live = Live(console=console, transient=True, refresh_per_second=2)
        self.folder: str | None = None
        self.told: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> "SweepDisplay":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def sweep(self, folder: str, plan: str) -> None:
        """Say where the sweep is and how it is laid over the cluster."""
        self.folder = folder
        self.console.print(f"sweep: {folder}\n{plan}", style="dim", markup=False)

    def trial(self, trial: Trial, trials: dict[str, Trial]) -> None:
        """Take note of a trial that changed."""
        ended = trial.state in ("finished", "stopped", "failed")
        news = (trial.state, trial.failures)
        if self.told.get(trial.id) != news and (ended or trial.error):
            self.console.print(self._line(trial), markup=False, highlight=False)
        self.told[trial.id] = news
        if self.console.is_terminal:
            self.live.update(self._table(list(trials.values())))

    def _line(self, trial: Trial) -> str:
        score = self._score(trial)
        what = f"{self.metric} {score:.4f}" if score is not None else "no score"
        why = f": {trial.error}" if trial.error else ""
        settings = ", ".join(f"{path}={_short(value)}" for path, value in trial.point.items())
        epochs = f"{len(trial.history)}/{trial.epochs} epochs"
        return f"trial {trial.id} {trial.state} after {epochs}, {what} ({settings}){why}"

    def _table(self, trials: list[Trial]) -> Table:
        counts = {state: sum(t.state == state for t in trials) for state in ("running", "paused")}
        over = len(trials) - sum(counts.values())
        table = Table(
            "trial",
            "state",
            "epochs",
            self.metric.replace("_", " "),
            "settings",
            title=f"{len(trials)} trials: {counts['running']} at work, {counts['paused']} paused, "
            f"{over} over",
        )
        sign = 1 if self.metric in LOWER_IS_BETTER else -1

        def order(trial: Trial) -> tuple[bool, bool, float]:
            score = self._score(trial)
            return trial.state != "running", score is None, sign * (score or 0.0)

        for trial in sorted(trials, key=order)[:_SHOWN]:
            score = self._score(trial)
            table.add_row(
                trial.id,
                trial.state,
                f"{len(trial.history)}/{trial.epochs}",
                "" if score is None else f"{score:.4f}",
                "  ".join(f"{p.rpartition('.')[2]} {_short(v)}" for p, v in trial.point.items()),
            )
        return table

    def _score(self, trial: Trial) -> float | None:
        scores = [row[f"val_{self.metric}"] for row in trial.history if f"val_{self.metric}" in row]
        if not scores:
            return None
        return min(scores) if self.metric in LOWER_IS_BETTER else max(scores)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
