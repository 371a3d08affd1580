"""`btray train`."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from btray.cli.config import ConfigFile, Overrides
from btray.cli.folds import cross_validate
from btray.cli.loading import loading
from btray.config import Config, load_config, read_tree
from btray.errors import UserError

if TYPE_CHECKING:
    from btray.registry.tracker import Tracker
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
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="The same to the bit on GPUs too: train.deterministic=true."
        ),
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on with the run in this folder; --set and --config change what may change.",
            metavar="RUN",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validate: train once for each of the data set's K folds.", min=2),
    ] = None,
    no_wait: Annotated[
        bool,
        typer.Option("--no-wait", help="Fail, not wait, when the cluster lacks CPUs or GPUs."),
    ] = False,
) -> None:
    """Train a network and export its best checkpoint as a bundle."""
    settings = list(overrides or ())
    # As JSON strings, so that YAML takes them as they are.
    settings += [f"data.dataset={json.dumps(data)}"] if data else []
    settings += [f"run.name={json.dumps(name)}"] if name else []
    settings += ["train.deterministic=true"] if deterministic else []
    if resume and (name or folds):
        raise UserError("--resume goes on with the run under its own name; leave the others out")
    from btray.cluster import connect
    from btray.train.changes import Changes
    from btray.train.inputs import open_folds, open_training_data
    from btray.train.storage import RunFolder

    # Mistakes that need neither Ray nor torch are told before either is loaded.
    changes = Changes(read_tree(config), settings)
    if resume:
        _, resolved, _ = RunFolder.reopen(resume, changes)
    else:
        resolved = load_config(config, settings)
        RunFolder.free(resolved)
    checked = open_folds(resolved, folds) if folds else open_training_data(resolved)
    data_hash = checked.manifest.content_hash
    errors = Console(stderr=True, soft_wrap=True)
    tracking = _tracking(resolved, data_hash, errors)
    errors.print("starting Ray …", style="dim")
    try:
        with loading("btray.train.folds" if folds else "btray.train.trainer"):
            connect()
    except (KeyboardInterrupt, SystemExit) as error:
        errors.print("interrupted")
        raise typer.Exit(code_of(error)) from None
    from btray.train.folds import is_cross_validation

    if folds or (resume and is_cross_validation(resume)):
        if resume and (config or settings):
            raise UserError("--resume of a cross-validation takes no other settings")
        cross_validate(resolved, folds, resume, errors)
        return
    from ray.train import TrainingFailedError

    from btray.train.failures import one_line
    from btray.train.progress import ConsoleDisplay, Displays
    from btray.train.trainer import Stopped, fit
    from btray.train.trainer import resume as go_on

    try:
        with tracking as tracker:
            with ConsoleDisplay(errors) as display:
                shown = Displays(display, tracker) if tracker else display
                if resume:
                    run = go_on(resume, shown, not no_wait, changes)
                else:
                    run = fit(resolved, shown, not no_wait)
            _finish(run, errors)
            if tracker:
                tracker.finish(run)
    except TrainingFailedError as error:
        errors.print(
            f"btray: training failed: {one_line(error)}; details in {display.run}/btray.log; "
            f"mend it and go on with: btray train --resume {display.run}",
            markup=False,
        )
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, SystemExit, Stopped) as error:  # Ray Train answers Ctrl-C so
        hint = f"; go on with: btray train --resume {display.run}" if display.run else ""
        errors.print(f"interrupted{hint}", markup=False)
        raise typer.Exit(143 if isinstance(error, Stopped) else code_of(error)) from None


def _tracking(
    config: Config, data_hash: str, errors: Console
) -> AbstractContextManager["Tracker | None"]:
    """Return what records the run, or nothing when that is turned off."""
    warn = warning(errors)
    if not is_tracked(config, warn):
        return nullcontext()
    from btray.registry.tracker import Tracker

    return Tracker(config, data_hash, warn)


def is_tracked(config: Config, warn: Callable[[str], None]) -> bool:
    """Say whether MLflow is told, and warn where it cannot be."""
    from btray.registry.client import VARIABLE

    if not config.tracking.enabled:
        return False
    if not (config.tracking.uri or os.environ.get(VARIABLE)) and "://" in config.run.storage:
        warn("tracking is off: a bucket can hold no SQLite; set tracking.uri to an MLflow server")
        return False
    return True


def warning(errors: Console) -> Callable[[str], None]:
    """Return what tells a line on the console as it is."""
    return lambda line: errors.print(line, markup=False, highlight=False)


def code_of(error: BaseException) -> int:
    """Return the exit code of an interruption: SIGTERM's, which Ray turns into 15, or Ctrl-C's."""
    terminated = isinstance(error, SystemExit) and error.code in {15, 143}
    return 143 if terminated else 130


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
