"""`btray train --folds`."""

from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from btray.config import Config
    from btray.train.folds import CrossValidation


def cross_validate(
    config: "Config", folds: int | None, resume: str | None, errors: Console
) -> None:
    """Train every fold, or those that are left, and print the scores and the bundles' places."""
    from btray.cli.train import code_of
    from btray.train.folds import FoldsFailedError, fit_folds, resume_folds
    from btray.train.folds_display import FoldsDisplay
    from btray.train.trainer import Stopped

    try:
        with FoldsDisplay(errors) as display:
            done = (
                resume_folds(resume, display) if resume else fit_folds(config, folds or 0, display)
            )
    except FoldsFailedError as error:
        errors.print(
            f"btray: {error}; mend it and go on with: btray train --resume {display.run}",
            markup=False,
        )
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, SystemExit, Stopped) as error:
        hint = f"; go on with: btray train --resume {display.run}" if display.run else ""
        errors.print(f"interrupted{hint}", markup=False)
        raise typer.Exit(143 if isinstance(error, Stopped) else code_of(error)) from None
    _report(done, errors)


def _report(done: "CrossValidation", errors: Console) -> None:
    """Draw the curves, show the scores, and print every fold's bundle on stdout."""
    from btray.core.files import join
    from btray.train.plots import plot_folds

    done.folder.write("folds.png", plot_folds(done.histories))
    errors.print(_table(done.scores))
    errors.print(
        f"scores in {join(done.folder.uri, 'folds.json')}, curves in folds.png, answers to every "
        "row outside test in out_of_fold.parquet",
        markup=False,
        highlight=False,
    )
    if doubts := done.scores["doubtful_labels"]:
        errors.print(
            f"labels that are probably wrong: {doubts}, to look at in doubtful_labels.png and .csv",
            markup=False,
            highlight=False,
        )
    for bundle in done.bundles:
        typer.echo(bundle)


def _table(scores: dict[str, Any]) -> Table:
    names = ("accuracy", "macro_f1", "macro_auroc", "loss")
    table = Table("fold", "images", *(name.replace("_", " ") for name in names))
    for column in table.columns[1:]:
        column.justify = "right"
    for fold in scores["per_fold"]:
        table.add_row(str(fold["fold"]), str(fold["rows"]), *(_shown(fold[n]) for n in names))
    table.add_section()
    for title, key in (("mean", "mean"), ("standard deviation", "standard_deviation")):
        table.add_row(title, "", *(_shown(scores[key][name]) for name in names))
    pooled = scores["out_of_fold"]
    table.add_row("all, pooled", str(pooled["rows"]), *(_shown(pooled[name]) for name in names))
    return table


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
