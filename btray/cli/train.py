"""`btray train`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from btray.cli.config import ConfigFile, Overrides
from btray.cli.loading import loading
from btray.config import load_config
from btray.errors import UserError

if TYPE_CHECKING:
    from btray.train.trainer import Run


def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="Data set; the same as --set data.dataset=…")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; the same as --set run.name=…")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with the run in this folder.", metavar="RUN")
    ] = None,
) -> None:
    """Train a network and export its best checkpoint as a bundle."""
    settings = list(overrides or ())
    # As JSON strings, so that YAML takes them as they are.
    settings += [f"data.dataset={json.dumps(data)}"] if data else []
    settings += [f"run.name={json.dumps(name)}"] if name else []
    if resume and (config or settings):
        raise UserError("--resume goes on with the run's own settings; leave the others out")
    resolved = load_config(config, settings)
    from btray.cluster import connect
    from btray.train.inputs import open_training_data
    from btray.train.storage import RunFolder

    # Mistakes that need neither Ray nor torch are told before either is loaded.
    if resume:
        _, resolved = RunFolder.reopen(resume)
    else:
        RunFolder.free(resolved)
    open_training_data(resolved)
    errors = Console(stderr=True, soft_wrap=True)
    errors.print("starting Ray …", style="dim")
    try:
        with loading("btray.train.trainer"):
            connect()
    except KeyboardInterrupt:
        errors.print("interrupted")
        raise typer.Exit(130) from None
    from ray.train import TrainingFailedError

    from btray.train.progress import ConsoleDisplay
    from btray.train.trainer import fit
    from btray.train.trainer import resume as go_on

    try:
        with ConsoleDisplay(errors) as display:
            run = go_on(resume, display) if resume else fit(resolved, display)
    except TrainingFailedError as error:
        reason = str(error).strip().splitlines()[-1]
        errors.print(
            f"btray: training failed: {reason}; details in {display.run}/btray.log; mend it and "
            f"go on with: btray train --resume {display.run}",
            markup=False,
        )
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, SystemExit):  # Ray Train answers Ctrl-C with the latter
        hint = f"; go on with: btray train --resume {display.run}" if display.run else ""
        errors.print(f"interrupted{hint}", markup=False)
        raise typer.Exit(130) from None
    _finish(run, errors)


def _finish(run: "Run", errors: Console) -> None:
    """Draw the curves, tell the best epoch, and print the bundle's place on stdout."""
    from btray.core.files import join
    from btray.core.layout import FOLDER
    from btray.train.plots import plot_history

    run.folder.write("curves.png", plot_history(run.history))
    best = run.bundle.card
    errors.print(
        f"best epoch {best.provenance.epoch + 1}: validation accuracy "
        f"{best.metrics['val_accuracy']:.4f}, macro-F1 {best.metrics['val_macro_f1']:.4f}; "
        f"curves in {join(run.folder.uri, 'curves.png')}",
        highlight=False,
    )
    typer.echo(join(run.folder.uri, FOLDER))
