"""`btray runs`: what MLflow knows of runs."""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from btray.errors import UserError

if TYPE_CHECKING:
    from btray.registry.runs import Runs, TrackedRun

app = typer.Typer(help="List, show and compare tracked runs.", no_args_is_help=True)

STORAGE: Final = "runs"
"""Where runs are kept when nothing else is said."""

Tracking = Annotated[
    str | None,
    typer.Option(
        help="MLflow server (http://…), sqlite:///FILE or folder of runs; by default what "
        "MLFLOW_TRACKING_URI names, or else runs.",
        metavar="URI",
    ),
]
Experiment = Annotated[str, typer.Option(help="MLflow's experiment that the runs belong to.")]


class Format(StrEnum):
    """How answers are printed."""

    table = "table"
    json = "json"


Output = Annotated[Format, typer.Option("--format", help="Table or JSON.")]


@app.command("list")
def list_runs(
    tracking: Tracking = None, experiment: Experiment = "btray", output: Output = Format.table
) -> None:
    """List the tracked runs, the newest first."""
    found = _open(tracking, experiment).all()
    if output is Format.json:
        print_json([asdict(run) for run in found])
        return
    table = Table("run", "status", "started (UTC)", "model", "accuracy", "macro-F1", "bundle")
    for run in found:
        score = (_score(run, "val_accuracy"), _score(run, "val_macro_f1"))
        model, bundle = run.params.get("model.name", ""), run.tags.get("btray.bundle", "")
        cells = (run.name, run.status, run.started[:19].replace("T", " "), model, *score, bundle)
        table.add_row(*map(escape, cells))
    print_table(table)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Name or MLflow id of a run.")],
    tracking: Tracking = None,
    experiment: Experiment = "btray",
    output: Output = Format.table,
) -> None:
    """Show what is known of a run: state, scores, settings."""
    found = _open(tracking, experiment).find(run)
    if output is Format.json:
        print_json(asdict(found))
        return
    table = Table("what", "value")
    ended = "" if found.seconds is None else f", {found.seconds:.0f} s"
    table.add_row(escape(found.name), f"{found.status}{ended}, id {found.run_id}")
    for name, text in found.tags.items():
        table.add_row(escape(name), escape(text))
    for name, value in sorted(found.metrics.items()):
        table.add_row(escape(name), f"{value:.6g}")
    for name, text in sorted(found.params.items()):
        table.add_row(escape(name), escape(text))
    print_table(table)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Names or MLflow ids.", metavar="RUN RUN…")],
    out: Annotated[Path | None, typer.Option(help="PNG of the validation curves.")] = None,
    tracking: Tracking = None,
    experiment: Experiment = "btray",
    output: Output = Format.table,
) -> None:
    """Compare runs: the settings that differ, their scores, their validation curves."""
    from btray.registry.runs import changed, scores

    if len(set(runs)) < 2:
        raise UserError("a comparison needs two runs or more; see them with: btray runs list")
    known = _open(tracking, experiment)
    found = [known.find(name) for name in dict.fromkeys(runs)]
    differences, table = changed(found), scores(found)
    if out is not None:
        _draw(known, found, out)
    if output is Format.json:
        named = [{"name": run.name, "run_id": run.run_id} for run in found]
        print_json({"runs": named, "parameters": differences, "scores": table})
        return
    shown = Table("", *(escape(run.name) for run in found))
    for name, values in differences.items():
        shown.add_row(escape(name), *("" if v is None else escape(v) for v in values))
    shown.add_section()
    for name, numbers in table.items():
        shown.add_row(escape(name), *("" if v is None else f"{v:.4f}" for v in numbers))
    print_table(shown)


def _draw(known: "Runs", found: "list[TrackedRun]", out: Path) -> None:
    from btray.core.files import reason
    from btray.registry.runs import CURVES, draw_comparison

    labels = [run.name for run in found]
    if len(set(labels)) < len(labels):
        labels = [f"{run.name} {run.run_id[:6]}" for run in found]
    curves = {
        metric: {label: known.curve(run, metric) for label, run in zip(labels, found, strict=True)}
        for metric in CURVES
    }
    try:
        out.write_bytes(draw_comparison(curves))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {reason(error)}") from None


@app.command()
def sync(
    run: Annotated[str, typer.Argument(help="Folder or URI of a run.", metavar="RUN")],
    tracking: Tracking = None,
) -> None:
    """Send MLflow what a run could not: its events since the server was gone."""
    from btray.registry.send import sender_of
    from btray.train.storage import RunFolder

    sender = sender_of(RunFolder.locate(run), lambda line: typer.echo(line, err=True), tracking)
    count = sender.send()
    typer.echo(f"{count} events sent to {sender.uri}")


def _open(tracking: str | None, experiment: str) -> "Runs":
    from btray.registry.client import locate
    from btray.registry.runs import Runs

    return Runs(locate(tracking, STORAGE), experiment)


def _score(run: "TrackedRun", name: str) -> str:
    value = run.metrics.get(f"best_{name}", run.metrics.get(name))
    return "" if value is None else f"{value:.4f}"


def print_json(value: Any) -> None:  # noqa: ANN401 - what JSON holds
    """Print a JSON document; a number that is none becomes null."""
    sys.stdout.write(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:  # noqa: ANN401 - what JSON holds
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    unbounded = isinstance(value, float) and value - value != 0
    return None if unbounded else value


def print_table(table: Table) -> None:
    """Print a table with its cells as they are."""
    Console(highlight=False, emoji=False).print(table)
