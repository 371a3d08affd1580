"""A search over settings: many trials of the same training, and what is learned from them."""

import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from pyarrow.fs import FileSelector
from ray import tune
from ray.train import Checkpoint
from ray.tune.error import TuneError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from btray.config import Config, RunConfig, dump_config
from btray.core import files
from btray.core.bundle import Bundle, load_bundle
from btray.core.layout import CARD, WEIGHTS
from btray.core.layout import FOLDER as BUNDLE
from btray.data.cache import cache_limit
from btray.errors import UserError
from btray.train.export import export_bundle
from btray.train.folds import ENVIRONMENT
from btray.train.learner import PROGRESS, Progress, score_of
from btray.train.storage import RunFolder
from btray.tune.distributed import RUN, train_distributed
from btray.tune.folder import DATA, create, reopen, reserve, settled
from btray.tune.outcome import Outcome, Trial
from btray.tune.plan import Plan, Shared, make_plan, share
from btray.tune.refit import refit
from btray.tune.report import write_outcome, write_report
from btray.tune.reporter import Reporter, Watcher, accounting
from btray.tune.schedulers import Budget, create_scheduler, doubt, pauses
from btray.tune.searchers import known_trials, sampler
from btray.tune.settings import SweepConfig
from btray.tune.space import Space, merged
from btray.tune.trial import BEST, KEPT, POINT, LearnerTrial, start_of

_SNAPSHOT: Final = "1"
"""Seconds between two records of where the sweep stands, which is what `resume` goes on from."""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep."""

    folder: RunFolder
    outcome: Outcome
    space: Space
    best: Config
    """The run of the best trial."""
    bundle: Bundle
    """Its best checkpoint, or with `tune.refit` its refit."""
    remark: str | None = None
    """What a person must know of the bundle."""


class SweepFailedError(Exception):
    """No trial came to a score."""


class SweepStopped(Exception):  # noqa: N818 - no error: it was asked for
    """Ctrl-C ended a sweep early; it can be resumed."""


def search(config: SweepConfig, watcher: Watcher | None = None) -> Sweep:
    """Run a sweep and export the best trial's best checkpoint.

    Raises:
        UserError: nothing to train on, a space that cannot be, a name in use, resources the
            cluster lacks, or storage that cannot be written.
        SweepFailedError: no trial came to a score.
        SweepStopped: by Ctrl-C.

    """
    folder = reserve(config)
    plan = make_plan(settled(config, folder))
    shared = share(plan)
    trainable = _trainable(plan, folder, shared)
    search_alg, scheduler = _searcher(plan), create_scheduler(plan.config, plan.space)
    create(plan.config, folder, plan.dataset.order_hash())
    tuner = _tuner(plan, folder, trainable, search_alg, scheduler)
    return _run(plan, folder, shared, tuner, watcher)


def resume(uri: str, watcher: Watcher | None = None) -> Sweep:
    """Go on with a sweep that ended early: finished trials stay, others go on where they were.

    Ray unpickles what the folder holds: a folder that others can write to must not be resumed.

    Raises:
        UserError: no sweep there, a finished one, a torn record of it, or its data set has
            changed; else as `search`.

    """
    folder, config = reopen(uri)
    plan = make_plan(config)
    if plan.dataset.order_hash().encode() != folder.read(DATA):
        raise UserError(f"{plan.dataset.uri}: not the data set this sweep began with; start anew")
    shared = share(plan)
    trainable = _trainable(plan, folder, shared)
    recorded = folder.exists("tuner.pkl") and _is_recorded(folder)
    if recorded:
        tuner = tune.Tuner.restore(
            folder.path, trainable, storage_filesystem=folder.filesystem, resume_unfinished=True
        )
    else:  # killed before its first record
        scheduler = create_scheduler(plan.config, plan.space)
        tuner = _tuner(plan, folder, trainable, _searcher(plan), scheduler)
    return _run(plan, folder, shared, tuner, watcher, recorded)


def _is_recorded(folder: RunFolder) -> bool:
    found = folder.filesystem.get_file_info(FileSelector(folder.path))
    return any(one.base_name.startswith("experiment_state-") for one in found)


def _run(
    plan: Plan,
    folder: RunFolder,
    shared: Shared,
    tuner: tune.Tuner,
    watcher: Watcher | None,
    recorded: bool = False,
) -> Sweep:
    began = time.monotonic()
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = _SNAPSHOT
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # btray shows its own
    if watcher is not None:
        rows = plan.dataset.count("train")
        why = "; ".join(filter(None, (plan.room.why, doubt(plan.config, rows))))
        watcher.sweep(folder.uri, why)
    with accounting(watcher, recorded) as account, _own_errors():
        tuner.fit()
    reporter = account.reporter
    if reporter is None:
        raise RuntimeError("Ray Tune started without btray's reporter")
    if _is_unfinished(plan, reporter):
        raise SweepStopped(folder.uri)
    seconds = reporter.seconds_before + time.monotonic() - began
    return _finish(plan, folder, shared, _outcome(plan, folder, reporter, seconds))


@contextmanager
def _own_errors() -> Iterator[None]:
    """Let a line for a person through that Ray Tune has wrapped."""
    try:
        yield
    except TuneError as error:
        raise (error.__cause__ if isinstance(error.__cause__, UserError) else error) from None


def _is_unfinished(plan: Plan, reporter: Reporter) -> bool:
    """Say whether Ray Tune returned before all trials, or the budget, had come to an end."""
    states = [trial.state for trial in reporter.trials.values()]
    if any(state in ("running", "paused") for state in states):
        return True
    bounded = plan.config.tune.hours is not None or plan.config.tune.gpu_hours is not None
    return len(states) < plan.trials and not bounded


def _trainable(plan: Plan, folder: RunFolder, shared: Shared) -> Any:  # noqa: ANN401 - Ray's
    """Return what every trial runs, with all it needs in the object store."""
    if plan.room.workers > 1:
        train = plan.base.train.model_copy(update={"cpus_per_worker": plan.room.cpus})
        # Trials beside each other share the object store.
        limit = cache_limit(plan.base) // plan.room.at_once
        data = plan.base.data.model_copy(update={"cache_limit": limit})
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        run = tune.with_parameters(
            train_distributed,
            base=plan.base.model_copy(update={"train": train, "data": data}),
            folder=folder.uri,
            environment=environment,
        )
        return tune.with_resources(run, plan.room.resources)
    parameters = {
        "base": plan.base,
        "class_names": plan.dataset.manifest.class_names,
        "blocks": shared.blocks,
        "weights": shared.weights,
        "threads": plan.room.cpus,
        "timed": "latency_ms" in plan.config.tune.objectives,
    }
    trial = tune.with_parameters(LearnerTrial, **parameters)
    return tune.with_resources(trial, plan.room.resources)


def _tuner(
    plan: Plan,
    folder: RunFolder,
    trainable: Any,  # noqa: ANN401 - what Ray Tune takes
    search_alg: Any,  # noqa: ANN401 - a searcher of Ray Tune's
    scheduler: TrialScheduler,
) -> tune.Tuner:
    settings = plan.config.tune
    several = plan.modelled and bool(settings.objectives)
    gpu_hours = settings.gpu_hours
    # Where trials are paused, the resources alone say how many are at work.
    cap = None if plan.modelled or pauses(settings) else plan.room.at_once
    return tune.Tuner(
        trainable,
        param_space=None if plan.modelled else {POINT: tune.grid_search(plan.points)},
        tune_config=tune.TuneConfig(
            metric=None if several else BEST,
            mode=None if several else "max",
            search_alg=search_alg,
            scheduler=scheduler,
            num_samples=settings.trials if plan.modelled else 1,
            max_concurrent_trials=cap,
            time_budget_s=settings.hours and 3600 * settings.hours,
            reuse_actors=plan.room.workers == 1,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=folder.parent,
            storage_filesystem=folder.filesystem,
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=plan.base.train.keep_checkpoints,
                checkpoint_score_attribute=KEPT,
                checkpoint_score_order="max",
                checkpoint_frequency=1 if plan.room.workers == 1 else 0,
            ),
            stop=Budget(gpu_hours, plan.room.gpus_each) if gpu_hours is not None else None,
            callbacks=[Reporter(plan.base.train.epochs, plan.base.train.metric)],
            verbose=0,
        ),
    )


def _folder_name(trial: Any) -> str:  # noqa: ANN401 - Ray Tune's Trial
    return f"trial-{trial.trial_id}"


def _searcher(plan: Plan) -> Any:  # noqa: ANN401 - a searcher of Ray Tune's
    """Return Optuna's TPE behind Ray Tune's interface, knowing what earlier sweeps found.

    None where all points are known beforehand.
    """
    import optuna

    settings = plan.config.tune
    if not plan.modelled:
        return None
    metrics = [BEST, *settings.objectives]
    modes = ["max", *("min" for _ in settings.objectives)]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    direction = optuna.study.StudyDirection
    directions = [direction.MAXIMIZE if mode == "max" else direction.MINIMIZE for mode in modes]
    study = optuna.create_study(storage=storage, study_name="sweep", directions=directions)
    for trial in known_trials(plan.config, plan.space, plan.dataset.manifest.content_hash):
        study.add_trial(trial)
    for point in plan.points:
        study.enqueue_trial(plan.space.encode(point))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        search_alg = OptunaSearch(
            _Suggest(plan.space),
            metric=metrics if settings.objectives else BEST,
            mode=modes if settings.objectives else "max",
            sampler=sampler(settings, plan.config.seed),
            study_name="sweep",
            storage=storage,
        )
    return search_alg if pauses(settings) else ConcurrencyLimiter(search_alg, plan.room.at_once)


@dataclass(frozen=True)
class _Suggest:
    """Draws a point, as Ray Tune wants it."""

    space: Space

    def __call__(self, trial: Any) -> dict[str, Any]:  # noqa: ANN401 - Optuna's Trial
        return {POINT: self.space.suggest(trial)}


def _outcome(plan: Plan, folder: RunFolder, reporter: Reporter, seconds: float) -> Outcome:
    settings, metric = plan.config.tune, plan.base.train.metric
    return Outcome(
        name=folder.name,
        metric=metric,
        objectives=[metric, *settings.objectives] if settings.objectives else [],
        search=settings.search,
        scheduler=settings.scheduler,
        seed=plan.config.seed,
        data_hash=plan.dataset.manifest.content_hash,
        trials=list(reporter.trials.values()),
        seconds=seconds,
    )


def _finish(plan: Plan, folder: RunFolder, shared: Shared, outcome: Outcome) -> Sweep:
    """Report, and export the best checkpoint; with `sweep.json`, written last, it is finished."""
    best = outcome.best
    if best is None:
        write_report(outcome, plan.space, "", folder.write)
        write_outcome(outcome, plan.space, folder.write)
        errors = "; ".join(f"{len(e.trials)} x {e.error}" for e in outcome.errors())
        raise SweepFailedError(
            f"none of {len(outcome.trials)} trials came to a score: {errors or 'no result'}"
        )
    run = merged(plan.base, best.point)
    # Places may name people, and mean nothing elsewhere.
    data = run.data.model_copy(update={"dataset": None, "cache_dir": None})
    ready = run.model_copy(update={"run": RunConfig(), "data": data})
    text = dump_config(ready)
    if outcome.scheduler == "pbt":
        text = f"# PBT changed settings on the way: these are those of the best epoch.\n{text}"
    folder.write("best.yaml", text.encode())
    write_report(outcome, plan.space, text, folder.write)
    own = run.run.model_copy(update={"storage": folder.uri, "name": f"trial-{best.id}"})
    remark = _export(plan, folder, shared, outcome, run.model_copy(update={"run": own}))
    write_outcome(outcome, plan.space, folder.write)
    bundle = load_bundle(files.join(folder.uri, BUNDLE))
    return Sweep(folder, outcome, plan.space, ready, bundle, remark)


def _export(
    plan: Plan, folder: RunFolder, shared: Shared, outcome: Outcome, run: Config
) -> str | None:
    """Write the bundle of the best checkpoint, or of its refit; return a remark on it."""
    checkpoint, remark = _best_checkpoint(plan, folder, outcome), None
    with checkpoint.as_directory() as source, TemporaryDirectory() as temporary:
        made = Path(temporary)
        export_bundle(Path(source), made / "best", run, plan.dataset)
        kind = "best"
        if plan.config.tune.refit:
            blocks, weights = shared.blocks[run.image], shared.weights.get(start_of(run))
            try:
                refit(run, plan.dataset, blocks, weights, plan.room, Path(source), made / "refit")
                kind = "refit"
            except UserError as error:
                remark = f"{error}; the bundle is the search's best checkpoint"
        for name in (WEIGHTS, CARD):
            folder.write(f"{BUNDLE}/{name}", (made / kind / name).read_bytes())
    return remark


def _best_checkpoint(plan: Plan, folder: RunFolder, outcome: Outcome) -> Checkpoint:
    """Return the checkpoint that reached the outcome's best score; of equals, of lowest loss.

    From its folder: after a crash Ray's record may lack some, and name others that are gone.
    """
    best, metric = _known(outcome.best), plan.base.train.metric
    place = f"{folder.path}/trial-{best.id}"
    if plan.room.workers > 1:
        place = f"{place}/{RUN}"
    found = []
    for one in folder.filesystem.get_file_info(FileSelector(place)):
        if not one.base_name.startswith("checkpoint_"):
            continue
        text = folder.read(f"{one.path.removeprefix(folder.path + '/')}/{PROGRESS}")
        progress = Progress(**json.loads(text or "{}"))
        if progress.history and not progress.next_step:  # whole, and of an epoch's end
            last = progress.history[-1]
            found.append((score_of(last, metric), -last["val_loss"], one.path))
    wanted = outcome.score(best)
    reached = [one for one in found if wanted is not None and abs(one[0]) == abs(wanted)]
    if not reached:
        raise SweepFailedError(
            f"the checkpoint that reached {metric} {wanted} is gone; train it again with: "
            f"btray train --config {files.join(folder.uri, 'best.yaml')}"
        )
    return Checkpoint(max(reached)[2], folder.filesystem)


def _known(trial: Trial | None) -> Trial:
    if trial is None:
        raise AssertionError("unreachable: a sweep without a score has failed")
    return trial
