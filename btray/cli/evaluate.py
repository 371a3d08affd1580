"""`btray evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from btray.cli.bundles import open_bundle
from btray.cli.loading import loading
from btray.cli.progress import counting
from btray.errors import UserError

if TYPE_CHECKING:
    from btray.core.bundle import Bundle
    from btray.data.dataset import Dataset
    from btray.evaluate.evaluate import Evaluation


def evaluate(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE [BUNDLE] DATASET",
            help="Bundle, run or models:/NAME@ALIAS (with --compare two); then the data set.",
        ),
    ],
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; by default evaluation-SPLIT.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare two bundles on the same rows.")
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Also score changed images: shortcuts, faults, strange images, explanations. "
            "Some sixty answers more for each image.",
        ),
    ] = False,
    allow_leak: Annotated[
        bool,
        typer.Option(
            "--allow-leak", help="Score images that were trained on too, marked in the report."
        ),
    ] = False,
) -> None:
    """Score a bundle on a split: report.html, metrics.json, predictions and pictures."""
    from btray.cluster import connect
    from btray.data.dataset import Dataset

    *bundles, dataset = places
    if len(bundles) != (2 if compare else 1):
        wanted = "two bundles and a data set" if compare else "one bundle and a data set"
        raise UserError(f"{len(places)} arguments; give {wanted}")
    if compare and full:
        raise UserError("--full is of one bundle; leave out --compare")
    data = Dataset.open(dataset)
    opened = [open_bundle(bundle) for bundle in bundles]
    with loading("btray.evaluate.evaluate", "btray.evaluate.report"):
        connect()
    from btray.core.pages import NOTICE
    from btray.evaluate.report import prepare

    name = f"comparison-{split}" if compare else f"evaluation-{split}"
    directory = out or Path(name)
    prepare(directory)
    if compare:
        _compare(opened, data, split, directory, allow_leak)
    else:
        _evaluate(opened[0], data, split, directory, full, allow_leak)
    typer.echo(NOTICE)


def _evaluate(
    bundle: "Bundle", data: "Dataset", split: str, directory: Path, full: bool, allow_leak: bool
) -> None:
    from btray.evaluate.report import score_rows, write_report
    from btray.evaluate.stress import overlays
    from btray.registry.tracker import record_evaluation

    evaluation = _scored(bundle, data, split, allow_leak, full)
    shown = overlays(bundle, data, evaluation) if full else []
    names = write_report(evaluation, bundle, data, directory, shown)
    metrics = evaluation.metrics
    header, *rows = score_rows(metrics)
    table = Table(*header)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    interval = metrics["intervals"]["accuracy"]
    spread = "" if interval is None else " (95 %% interval %.4f to %.4f)" % tuple(interval)  # noqa: UP031
    console.print(f"accuracy {metrics['accuracy']:.4f}{spread}")
    if not metrics["dataset"]["same_as_trained_on"] and metrics["leakage"] is None:
        console.print(
            "note: not the data set the bundle was trained on; btray cannot tell whether these "
            "images were trained on"
        )
    if metrics["leakage"] is not None and metrics["leakage"]["twins"]:
        console.print("[red]inflated: some of these images were trained on (--allow-leak)[/red]")
    console.print(f"report: {directory / 'report.html'}", markup=False)
    record_evaluation(
        bundle.uri, directory, names, metrics, lambda line: typer.echo(line, err=True)
    )


def _scored(
    bundle: "Bundle", data: "Dataset", split: str, allow_leak: bool, full: bool = False
) -> "Evaluation":
    """Answer and score every row, after a look whether the bundle knows it already."""
    from btray.evaluate.evaluate import evaluate_bundle
    from btray.evaluate.leakage import check_leakage
    from btray.evaluate.numbers import assessed

    leakage = check_leakage(bundle, data, split, allow_leak)
    with counting("evaluating") as progress:
        evaluation = evaluate_bundle(bundle, data, split, progress)
    stressed = _stressed(bundle, data, evaluation) if full else {}
    return assessed(evaluation, bundle, {"leakage": leakage, **stressed})


def _stressed(bundle: "Bundle", data: "Dataset", evaluation: "Evaluation") -> dict[str, object]:
    from btray.evaluate import stress
    from btray.evaluate.style_only import score_style

    with counting("style taken away") as progress:
        shortcuts = stress.shortcuts(bundle, data, evaluation, progress)
    with counting("faults put in") as progress:
        robustness = stress.robustness(bundle, data, evaluation, progress)
    with counting("strange images and explanations"):
        return {
            "shortcuts": {**shortcuts, "style_only": score_style(data, evaluation.split)},
            "robustness": robustness,
            "kinds": stress.strangers_told(bundle, evaluation),
            "explanations": stress.explanations(bundle, data, evaluation),
        }


def _compare(
    bundles: list["Bundle"], data: "Dataset", split: str, directory: Path, allow_leak: bool
) -> None:
    from btray.evaluate.compare import compare, write_comparison

    first, second = (_scored(bundle, data, split, allow_leak) for bundle in bundles)
    result = compare(first, second)
    write_comparison(result, first, second, data, directory)
    for name in ("accuracy", "macro_f1"):
        found = result["differences"][name]
        low, high = found["interval"]
        typer.echo(
            f"{name}: {first.metrics[name]:.4f} and {second.metrics[name]:.4f}; second less first "
            f"{found['value']:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"
        )
    typer.echo(f"McNemar: p = {result['mcnemar']['p_value']:.3g}")
    typer.echo(f"report: {directory / 'compare.html'}")
