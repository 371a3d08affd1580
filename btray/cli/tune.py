"""`btray tune`."""

import json
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from btray.cli.config import ConfigFile, Overrides
from btray.cli.loading import loading
from btray.cli.train import code_of, is_tracked, warning
from btray.errors import UserError

if TYPE_CHECKING:
    from btray.registry.sweeps import SweepTracker
    from btray.tune.settings import SweepConfig
    from btray.tune.sweep import Sweep


def tune(
    config: ConfigFile = None,
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="Data set; the same as --set data.dataset=…")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the sweep; the same as --set run.name=…")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with the sweep in this folder.", metavar="SWEEP"),
    ] = None,
    register: Annotated[
        str | None,
        typer.Option(
            help="Register the best bundle under this name, as challenger.", metavar="MODEL"
        ),
    ] = None,
) -> None:
    """Search settings with Ray Tune; report the trials and export the best one's bundle."""
    settings = list(overrides or ())
    settings += [f"data.dataset={json.dumps(data)}"] if data else []
    settings += [f"run.name={json.dumps(name)}"] if name else []
    if resume and (config or settings):
        raise UserError("--resume goes on with the sweep as it began; leave the others out")
    from btray.train.inputs import open_training_data
    from btray.tune.folder import reopen, reserve
    from btray.tune.settings import load_sweep
    from btray.tune.space import Space

    # Mistakes that need neither Ray nor torch are told before either is loaded.
    if resume:
        _, resolved = reopen(resume)
    else:
        resolved = load_sweep(config, settings)
        reserve(resolved)
    dataset = open_training_data(resolved.base())
    Space.parse(resolved.tune.space, resolved.base())
    errors = Console(stderr=True, soft_wrap=True)
    tracking = _tracking(resolved, dataset.manifest.content_hash, errors)
    errors.print("starting Ray …", style="dim")
    try:
        with loading("btray.tune.sweep"):
            from btray.cluster import connect

            connect()
    except (KeyboardInterrupt, SystemExit) as error:
        errors.print("interrupted")
        raise typer.Exit(code_of(error)) from None
    from btray.tune.display import SweepDisplay
    from btray.tune.reporter import Watchers
    from btray.tune.sweep import SweepFailedError, SweepStopped, search
    from btray.tune.sweep import resume as go_on

    display = SweepDisplay(errors, resolved.train.metric)
    try:
        with tracking as tracker:
            with display:
                watcher = Watchers(display, tracker) if tracker else display
                done = go_on(resume, watcher) if resume else search(resolved, watcher)
            _report(done, errors)
            if tracker:
                tracker.finish(done.bundle.version)
    except SweepFailedError as error:
        errors.print(f"btray: {error}", markup=False)
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, SystemExit, SweepStopped) as error:
        hint = f"; go on with: btray tune --resume {display.folder}" if display.folder else ""
        errors.print(f"interrupted{hint}", markup=False)
        raise typer.Exit(code_of(error)) from None
    if register:
        _register(done, register, resolved, errors)
    typer.echo(done.bundle.uri)


def _tracking(
    config: "SweepConfig", data_hash: str, errors: Console
) -> "AbstractContextManager[SweepTracker | None]":
    """Return what records the sweep, or nothing when that is turned off."""
    warn = warning(errors)
    if not is_tracked(config, warn):
        return nullcontext()
    from btray.registry.sweeps import SweepTracker

    return SweepTracker(config, data_hash, warn)


def _report(done: "Sweep", errors: Console) -> None:
    from btray.core.files import join

    outcome = done.outcome
    best = outcome.best
    if best is None:
        raise AssertionError("unreachable: a sweep without a score has failed")
    if done.remark:
        errors.print(done.remark, markup=False, highlight=False)
    epoch = outcome.best_epoch(best) or 0
    saved = outcome.saved()
    errors.print(
        f"best of {len(outcome.trials)} trials: {best.id}, validation {outcome.metric} "
        f"{outcome.score(best):.4f} at epoch {epoch + 1}, chosen on validation: only the test "
        f"split says how good it is\n{outcome.epochs_spent()} of {outcome.epochs_planned()} "
        f"epochs trained ({100 * (saved or 0):.0f} % saved by stopping early); report in "
        f"{join(done.folder.uri, 'sweep.html')}, settings for `btray train --config` in best.yaml",
        markup=False,
        highlight=False,
    )


def _register(done: "Sweep", name: str, config: "SweepConfig", errors: Console) -> None:
    """Score the best bundle on the test split and make it a version of a model: a challenger."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from btray.data.dataset import Dataset
    from btray.evaluate.evaluate import evaluate_bundle
    from btray.evaluate.numbers import assessed
    from btray.evaluate.report import write_report
    from btray.registry.client import locate
    from btray.registry.models import Registry

    dataset = Dataset.open(config.data.dataset or "")
    evaluation = assessed(evaluate_bundle(done.bundle, dataset, "test"), done.bundle)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in write_report(evaluation, done.bundle, dataset, folder):
            done.folder.write(f"evaluation-test/{file}", (folder / file).read_bytes())
        uri = locate(config.tracking.uri, config.run.storage)
        registry = Registry(uri, config.tracking.experiment, create=True)
        version = registry.register(done.bundle, name, folder)
    errors.print(
        f"registered as {name}:{version.number}, challenger; test accuracy "
        f"{evaluation.metrics['accuracy']:.4f}",
        markup=False,
        highlight=False,
    )
