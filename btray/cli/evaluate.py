"""`btray evaluate`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from btray.cli.loading import loading
from btray.cli.progress import counting


def evaluate(
    bundle: Annotated[str, typer.Argument(help="Bundle or run: a folder or a URI.")],
    dataset: Annotated[str, typer.Argument(help="Data set: a folder or a URI.")],
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; by default evaluation-SPLIT.")
    ] = None,
) -> None:
    """Score a bundle on a split; write metrics.json, report.html, report.md and pictures."""
    from btray.cluster import connect
    from btray.data.dataset import Dataset

    data = Dataset.open(dataset)
    with loading("btray.evaluate.evaluate", "btray.evaluate.report"):
        connect()
    from btray.core.bundle import load_bundle
    from btray.core.pages import NOTICE
    from btray.evaluate.evaluate import evaluate_bundle
    from btray.evaluate.report import prepare, score_rows, write_report

    opened = load_bundle(bundle)
    directory = out or Path(f"evaluation-{split}")
    prepare(directory)
    with counting("evaluating") as progress:
        evaluation = evaluate_bundle(opened, data, split, progress)
    write_report(evaluation, opened, data, directory)
    header, *rows = score_rows(evaluation.metrics)
    table = Table(*header)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"accuracy {evaluation.metrics['accuracy']:.4f}")
    if not evaluation.metrics["dataset"]["same_as_trained_on"]:
        console.print(
            "note: not the data set the bundle was trained on; btray cannot tell whether these "
            "images were trained on"
        )
    console.print(NOTICE)
    console.print(f"report: {directory / 'report.html'}", markup=False)
