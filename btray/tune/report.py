"""What a sweep leaves behind: JSON, a picture and one HTML page."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from btray.core.pages import data_uri, render
from btray.tune.outcome import LOWER_IS_BETTER, Importance, Outcome, Trial
from btray.tune.plots import (
    LABELS,
    numbered_front,
    plot_curves,
    plot_importance,
    plot_overview,
    plot_parallel,
    plot_pareto,
    plot_progress,
    shown,
)
from btray.tune.space import Space
from btray.version import __version__


def write_report(
    outcome: Outcome,
    space: Space,
    best_config_yaml: str,
    folder_writer: Callable[[str, bytes], None],
) -> None:
    """Write `sweep.png` and `sweep.html` through a function of name and content."""
    importance = outcome.importance(space)
    folder_writer("sweep.png", plot_overview(outcome))
    folder_writer("sweep.html", _page(outcome, space, importance, best_config_yaml))


def write_outcome(
    outcome: Outcome, space: Space, folder_writer: Callable[[str, bytes], None]
) -> None:
    """Write `sweep.json`: what `Outcome.from_json` reads back, and a `summary` beside it."""
    found = outcome.to_json() | {"summary": summary(outcome, outcome.importance(space))}
    text = json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    folder_writer("sweep.json", text.encode())


def summary(outcome: Outcome, importance: Importance) -> dict[str, Any]:
    """Return what the report tells in numbers; epochs count from 0."""
    best = outcome.best
    return {
        "best": best and best.id,
        "score": best and outcome.score(best),
        "epoch": best and outcome.best_epoch(best),
        "pareto": [trial.id for trial in outcome.pareto()],
        "epochs_spent": outcome.epochs_spent(),
        "epochs_planned": outcome.epochs_planned(),
        "saved": outcome.saved(),
        "importance": importance.shares,
    }


def table(outcome: Outcome, space: Space) -> list[list[str]]:
    """Return the trials as text, a header first, then the best score first."""
    paths = [dimension.path for dimension in space.dimensions]
    costs = [
        name
        for name in ("parameters", "latency_ms")
        if any(getattr(trial, name) is not None for trial in outcome.trials)
    ]
    header = ["trial", LABELS[outcome.metric], "best epoch", "epochs", "state"]
    rows = [[*header, *paths, *(LABELS[name] for name in costs), "time", "failures"]]
    for trial in outcome.ranked():
        epoch = outcome.best_epoch(trial)
        row = [
            trial.id,
            _decimal(outcome.score(trial)),
            "-" if epoch is None else str(epoch + 1),
            f"{len(trial.history)}/{trial.epochs}",
            trial.state,
        ]
        row += [shown(trial.point[path]) if path in trial.point else "-" for path in paths]
        row += [_cost(trial, name) for name in costs]
        rows.append([*row, duration(trial.seconds), str(trial.failures)])
    return rows


def duration(seconds: float) -> str:
    """Return a time as `h:mm:ss`, days before it."""
    return str(timedelta(seconds=round(seconds)))


def remarks(outcome: Outcome) -> list[str]:
    """Return what a reader must know of the best score."""
    best, sound = outcome.best, [t for t in outcome.trials if t.state != "failed"]
    if best is None:
        return ["No trial that did not fail has a score: there is no best configuration."]
    scored = sum(outcome.score(trial) is not None for trial in sound)
    found = [
        f"The best of {scored} trials, chosen by its score on the validation split: that score is "
        "optimistic, the more so the more trials there were. Only a separate test split says how "
        "good it is: train it, then `btray evaluate` with `--split test`."
    ]
    top = outcome.ranked()[0]
    if top.state == "failed" and outcome.score(top) != outcome.score(best):
        found.append(
            f"Trial {top.id} had reached {_decimal(outcome.score(top))} when it failed; a trial "
            "that failed is not taken for the best."
        )
    unended = outcome.count("running") + outcome.count("paused")
    if unended:
        found.append(f"{unended} trials had not come to an end: the outcome is not final.")
    return found


def _page(outcome: Outcome, space: Space, importance: Importance, best_yaml: str) -> bytes:
    best = outcome.best
    return render(
        "btray.tune",
        "sweep.html.j2",
        title=f"Sweep {outcome.name}",
        headline=_headline(outcome),
        remarks=remarks(outcome),
        chosen=[(path, shown(value)) for path, value in best.point.items()] if best else [],
        best_yaml=best_yaml if best else "",
        figures=_figures(outcome, space, importance),
        importance=importance,
        pareto=[
            [str(number), trial.id]
            + [_objective(outcome, trial, name) for name in outcome.objectives]
            for number, trial in enumerate(numbered_front(outcome), start=1)
        ],
        objectives=[LABELS[name] for name in outcome.objectives],
        rows=table(outcome, space),
        best_id=best and best.id,
        errors=outcome.errors(),
        facts=_facts(outcome),
    )


def _headline(outcome: Outcome) -> list[tuple[str, str]]:
    best, saved = outcome.best, outcome.saved()
    cards = []
    if best is not None:
        epoch = outcome.best_epoch(best) or 0
        cards.append((_decimal(outcome.score(best)), f"best {LABELS[outcome.metric]}"))
        cards.append((best.id, f"best trial, epoch {epoch + 1} of {best.epochs}"))
    counts = [(n, s) for s in ("finished", "stopped", "failed") for n in [outcome.count(s)]]
    counts += [(n, s) for s in ("running", "paused") for n in [outcome.count(s)] if n]
    cards.append((str(len(outcome.trials)), "trials: " + ", ".join(f"{n} {s}" for n, s in counts)))
    spent = f"of {outcome.epochs_planned():,} planned epochs spent"
    cards.append((f"{outcome.epochs_spent():,}", spent))
    if saved is not None:
        cards.append((f"{saved:.0%}", "of epochs saved by stopping early, failed trials left out"))
    if outcome.seconds is not None:
        cards.append((duration(outcome.seconds), "wall time"))
    cards.append((duration(sum(t.seconds for t in outcome.trials)), "time of all trials together"))
    return cards


def _figures(outcome: Outcome, space: Space, importance: Importance) -> dict[str, str]:
    """Return the pictures there is something for."""
    found: dict[str, bytes] = {}
    if outcome.epochs_spent():
        found["curves"] = plot_curves(outcome)
    if outcome.best_so_far():
        found["progress"] = plot_progress(outcome)
    if any(outcome.score(trial) is not None for trial in outcome.trials) and space.dimensions:
        found["parallel"] = plot_parallel(outcome, space)
    if importance.shares:
        found["importance"] = plot_importance(importance)
    if len(outcome.objectives) > 1 and outcome.pareto():
        found["pareto"] = plot_pareto(outcome)
    return {name: data_uri(picture) for name, picture in found.items()}


def _facts(outcome: Outcome) -> list[tuple[str, str]]:
    direction = "lower" if outcome.metric in LOWER_IS_BETTER else "higher"
    return [
        ("metric", f"{LABELS[outcome.metric]}, {direction} is better; a trial's best epoch counts"),
        ("objectives", ", ".join(LABELS[n] for n in outcome.objectives) or "the metric alone"),
        ("search", outcome.search),
        ("scheduler", outcome.scheduler),
        ("seed", str(outcome.seed)),
        ("data set", f"content hash {outcome.data_hash}"),
        ("made by", f"btray {__version__}"),
    ]


def _objective(outcome: Outcome, trial: Trial, name: str) -> str:
    value = outcome.value(trial, name)
    return _cost(trial, name) if name in ("latency_ms", "parameters") else _decimal(value)


def _cost(trial: Trial, name: str) -> str:
    value = trial.latency_ms if name == "latency_ms" else trial.parameters
    if value is None:
        return "-"
    return f"{value:,}" if name == "parameters" else f"{value:.2f}"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
