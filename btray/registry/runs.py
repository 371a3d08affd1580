"""Runs that an MLflow store knows: found, shown and compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from btray.errors import UserError
from btray.registry.client import answered, experiment_id, nearest, open_client

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CURVES = ("val_macro_f1", "val_accuracy", "val_loss")
"""Validation metrics that a comparison draws."""


@dataclass(frozen=True)
class TrackedRun:
    """What the store says of one run."""

    run_id: str
    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    started: str
    """UTC, ISO 8601."""
    seconds: float | None
    """From start to end; None while it runs."""
    params: dict[str, str]
    metrics: dict[str, float]
    """The latest value of every metric."""
    tags: dict[str, str]


class Runs:
    """The runs of one experiment in one store."""

    def __init__(self, uri: str, experiment: str) -> None:
        """Open the store; raises UserError if it or the experiment is not there."""
        self.uri = uri
        self._client: MlflowClient = open_client(uri)
        self._experiment = experiment_id(self._client, uri, experiment)

    def all(self) -> list[TrackedRun]:
        """Return all runs, the newest first; raises UserError if there is no answer."""
        found: list[TrackedRun] = []
        token: str | None = None
        with answered(self.uri):
            while True:
                page = self._client.search_runs([self._experiment], page_token=token)
                found += map(_tracked, page)
                token = page.token
                if not token:
                    return found

    def find(self, name: str) -> TrackedRun:
        """Return the run of a name or an id.

        Raises:
            UserError: there is none (the nearest names are told), or there are several.

        """
        known = self.all()
        matches = [run for run in known if name in (run.name, run.run_id)]
        if not matches:
            hint = nearest(name, [run.name for run in known])
            raise UserError(f"{self.uri}: no run {name!r}; {hint}")
        if len(matches) > 1:
            ids = ", ".join(run.run_id for run in matches)
            raise UserError(f"{self.uri}: several runs are called {name!r}; give an id: {ids}")
        return matches[0]

    def curve(self, run: TrackedRun, metric: str) -> list[tuple[int, float]]:
        """Return a metric's (epoch, value); of an epoch trained again, the later value."""
        with answered(self.uri):
            history = self._client.get_metric_history(run.run_id, metric)
        points = {m.step: m.value for m in sorted(history, key=lambda m: m.timestamp)}
        return sorted(points.items())


def _tracked(run: Any) -> TrackedRun:  # noqa: ANN401 - mlflow.entities.Run
    info, end = run.info, run.info.end_time
    return TrackedRun(
        run_id=info.run_id,
        name=info.run_name,
        status=info.status,
        started=datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="seconds"),
        seconds=None if end is None else (end - info.start_time) / 1000,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags={k: v for k, v in run.data.tags.items() if k.startswith(("btray.", "mlflow.source"))},
    )


def changed(runs: Sequence[TrackedRun]) -> dict[str, list[str | None]]:
    """Return the parameters that differ, and the data if it does, with each run's value."""
    facts = [{"data": run.tags.get("btray.data_hash", "")[:12], **run.params} for run in runs]
    names = dict.fromkeys(name for fact in facts for name in fact)
    rows = {name: [fact.get(name) for fact in facts] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def scores(runs: Sequence[TrackedRun]) -> dict[str, list[float | None]]:
    """Return each run's best and evaluated scores, or its latest where it has no best."""
    tables = [_best(run.metrics) for run in runs]
    names = dict.fromkeys(name for table in tables for name in sorted(table))
    return {name: [table.get(name) for table in tables] for name in names}


def _best(metrics: dict[str, float]) -> dict[str, float]:
    latest = {f"latest_{name}": v for name, v in metrics.items() if name.startswith("val_")}
    best = {name: value for name, value in metrics.items() if name.startswith("best_")}
    reports = {name: v for name, v in metrics.items() if name.startswith("evaluation-")}
    return {**(best or latest), **reports}


def draw_comparison(curves: dict[str, dict[str, list[tuple[int, float]]]]) -> bytes:
    """Draw the curves of {metric: {run: [(epoch, value)]}}; return a PNG."""
    import io

    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5 * len(curves), 4.4), layout="constrained")
    for axes, (metric, runs) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        for name, points in runs.items():
            axes.plot(*zip(*points, strict=True) if points else ([], []), label=name, marker=".")
        axes.set(title=metric.replace("_", " "), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
