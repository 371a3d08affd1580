"""Sweeps on the session's cluster: what is found, kept, stopped and told."""

import json

import pytest
import yaml

from btray.config import Config, load_config
from btray.core.bundle import load_bundle
from btray.data.dataset import Dataset
from btray.errors import UserError
from btray.evaluate.evaluate import evaluate_bundle
from btray.train.trainer import fit
from btray.tune.space import merged
from btray.tune.sweep import SweepFailedError, resume, search

pytestmark = pytest.mark.cluster

REPEATABLE = ("train.cpus_per_worker=1", "train.metric=loss")
"""As many cores as a trial has, and a metric without ties."""


def scores(history):
    """A history without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in history]


def by_rate(trials):
    """Every trial's scores by its learning rate: which of two begins first is chance."""
    return {trial.point["train.learning_rate"]: scores(trial.history) for trial in trials}


def test_a_trial_is_the_same_training_as_a_run_of_its_own(cluster, make_sweep):
    config = make_sweep(overrides=REPEATABLE)
    done = search(config)
    trials = done.outcome.trials
    assert [trial.state for trial in trials] == ["finished"] * 3
    assert len({trial.point["train.learning_rate"] for trial in trials}) == 3
    best = done.outcome.best
    alone = fit(merged(config.base(), {**best.point, "run.name": "alone"}))
    assert scores(alone.history) == scores(best.history)
    assert alone.bundle.card.weights_sha256 == done.bundle.card.weights_sha256
    ready = load_config(done.folder.local / "best.yaml")
    assert ready.train.learning_rate == best.point["train.learning_rate"]
    assert ready.run == Config().run
    assert ready.data.dataset is None
    stored = json.loads((done.folder.local / "sweep.json").read_text())
    assert [trial["id"] for trial in stored["trials"]] == [trial.id for trial in trials]
    assert (done.folder.local / "sweep.html").stat().st_size > 10_000
    with pytest.raises(UserError, match="is finished"):
        resume(done.folder.uri)
    with pytest.raises(UserError, match="is there already"):
        search(config)
    again = search(make_sweep("again", REPEATABLE))
    assert by_rate(again.outcome.trials) == by_rate(trials)


def test_tpe_begins_with_known_points_and_asha_ends_trials_early(cluster, make_sweep):
    space = {
        "train.learning_rate": "loguniform(1e-6, 1e-2)",
        "train.loss": "choice([cross_entropy, focal])",
        "train.focal_gamma": {"space": "uniform(0.5, 3)", "when": {"train.loss": "focal"}},
    }
    known = {"train.learning_rate": 5e-3, "train.loss": "focal", "train.focal_gamma": 2.0}
    config = make_sweep(
        space=space, points=[known], search="tpe", scheduler="asha", trials=8,
        startup_trials=3, objectives=["latency_ms"],
    )  # fmt: skip
    done = search(config)
    trials = done.outcome.trials
    assert len(trials) == 8
    # Two are suggested before any result; which of them starts first is chance.
    assert known in [trial.point for trial in trials[:2]]
    for trial in trials:
        focal = trial.point["train.loss"] == "focal"
        assert ("train.focal_gamma" in trial.point) is focal
    assert done.outcome.count("stopped") > 0
    assert done.outcome.count("failed") == 0
    assert done.outcome.epochs_spent() < done.outcome.epochs_planned()
    assert all(trial.latency_ms > 0 and trial.parameters > 0 for trial in trials)
    front = done.outcome.pareto()
    fastest = min(trials, key=lambda trial: trial.latency_ms)
    assert fastest in front
    assert max(map(done.outcome.score, front)) == done.outcome.score(done.outcome.best)

    warm = make_sweep("warm", space=space, search="tpe", trials=2, warm_start=[done.folder.uri])
    assert len(search(warm).outcome.trials) == 2


def test_a_trial_that_diverges_ends_and_the_others_go_on(cluster, make_sweep):
    space = {"train.learning_rate": "choice([0.003, 1e30])"}
    wild = ("train.optimizer=sgd", "train.gradient_clip=0", "train.warmup_epochs=0")
    done = search(make_sweep(space=space, search="grid", overrides=wild))
    sane, mad = sorted(done.outcome.trials, key=lambda t: t.point["train.learning_rate"])
    assert (sane.state, mad.state) == ("finished", "failed")
    assert "diverged: the loss became" in mad.error
    assert mad.failures == 0
    assert done.outcome.best is sane
    space = {"train.learning_rate": "choice([1e29, 1e30])"}
    with pytest.raises(SweepFailedError, match=r"none of 2 trials .*: 2 x diverged") as error:
        search(make_sweep("mad", space=space, search="grid", overrides=wild))
    assert "\n" not in str(error.value)


def test_images_of_two_sizes_and_two_networks(cluster, make_sweep):
    space = {
        "image.size": "choice([32, 48])",
        "model.name": "choice([btray_cnn, resnet10t])",
    }
    overrides = ("train.epochs=1", "train.warmup_epochs=0")
    done = search(make_sweep(space=space, search="grid", overrides=overrides))
    points = [(t.point["image.size"], t.point["model.name"]) for t in done.outcome.trials]
    assert sorted(points) == [(s, n) for s in (32, 48) for n in ("btray_cnn", "resnet10t")]
    assert len({trial.parameters for trial in done.outcome.trials}) == 2
    assert load_bundle(done.bundle.uri).card.image.size == done.outcome.best.point["image.size"]


def test_a_refit_learns_validation_and_is_never_scored_on_it(cluster, make_sweep):
    config = make_sweep(refit=True, trials=2, overrides=REPEATABLE)
    done = search(config)
    card = done.bundle.card
    assert card.provenance.refit
    assert card.metrics == {}
    assert card.provenance.epoch == config.train.epochs - 1
    plain = search(make_sweep("plain", REPEATABLE, trials=2)).bundle
    assert card.calibration == plain.card.calibration
    assert card.weights_sha256 != plain.card.weights_sha256
    dataset = Dataset.open(config.data.dataset)
    with pytest.raises(UserError, match="trained on validation too"):
        evaluate_bundle(done.bundle, dataset, "validation")
    assert evaluate_bundle(done.bundle, dataset, "test").metrics["rows"] == dataset.count("test")
    with pytest.raises(UserError, match=r"model\.pretrained: .* scores would be too good"):
        fit(merged(config.base(), {"model.pretrained": done.bundle.uri, "run.name": "more"}))
    with pytest.raises(UserError, match=r"tune\.refit: train\.schedule=plateau"):
        search(make_sweep("stall", ("train.schedule=plateau",), refit=True))


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_other_schedulers_bring_every_trial_to_an_end(cluster, make_sweep, scheduler):
    config = make_sweep(scheduler=scheduler, trials=8, reduction=2, overrides=("train.epochs=4",))
    done = search(config)
    assert len(done.outcome.trials) == 8
    assert {trial.state for trial in done.outcome.trials} == {"finished", "stopped"}


def test_trials_of_two_workers(cluster, make_sweep):
    overrides = ("train.workers=2", *REPEATABLE)
    config = make_sweep(trials=2, overrides=overrides)
    done = search(config)
    best = done.outcome.best
    assert [trial.state for trial in done.outcome.trials] == ["finished"] * 2
    alone = fit(merged(config.base(), {**best.point, "run.name": "alone"}))
    assert scores(alone.history) == scores(best.history)
    assert alone.bundle.card.weights_sha256 == done.bundle.card.weights_sha256


@pytest.mark.timeout(600)  # two sweeps; a pause of the second costs a process start
def test_population_based_training_beats_its_members_left_alone(cluster, make_sweep, phantom):
    space = {"train.learning_rate": "loguniform(1e-5, 1e-2)"}
    points = [{"train.learning_rate": rate} for rate in (1e-5, 2e-5, 4e-5, 8e-5)]
    common = {"space": space, "points": points, "trials": 4, "at_once": 2}
    overrides = (
        f"data.dataset={phantom}",
        "train.epochs=16",
        "train.warmup_epochs=0",
        "train.metric=loss",
    )
    static = search(make_sweep("static", overrides, **common)).outcome
    living = search(
        make_sweep("living", overrides, scheduler="pbt", perturb_epochs=2, **common)
    ).outcome
    assert living.score(living.best) < static.score(static.best) - 0.1
    assert {t.point["train.learning_rate"] for t in living.trials} != {
        p["train.learning_rate"] for p in points
    }


def test_a_population_goes_on_without_a_member_that_diverges(cluster, make_sweep, phantom):
    found = search(
        make_sweep(
            "two-of-three",
            (f"data.dataset={phantom}", "train.epochs=3", "train.optimizer=sgd"),
            space={"train.learning_rate": "loguniform(1e-5, 1e9)"},
            points=[{"train.learning_rate": rate} for rate in (1e-3, 1e-2, 1e9)],
            trials=3,
            at_once=2,
            scheduler="pbt",
            perturb_epochs=1,
        )
    ).outcome
    ends = [(trial.state, len(trial.history)) for trial in found.trials]
    assert ends == [("finished", 3), ("finished", 3), ("failed", 0)]


@pytest.mark.parametrize(
    ("tune", "overrides", "message"),
    [
        ({"space": {"train.epoch": "randint(1, 3)"}}, (), r"train\.epoch.*train\.epochs"),
        ({"space": {"train.epochs": "choice([3])"}}, (), "nothing to search"),
        ({}, ("train.workers=64", "data.batch_size=64"), r"lower train\.workers"),
        ({}, ("train.workers=1..2",), "no range"),
        ({}, ("train.teacher=/nowhere",), "does not distil"),
        ({"gpu_hours": 1.0}, (), "trials take no GPU here"),
        ({"scheduler": "pbt", "trials": 1}, (), "at least two trials"),
        ({"space": {"train.weight_decay": "uniform(0, 0.1)"}, "scheduler": "pbt"}, (),
         "begin above it"),
        ({"points": [{"train.learning_rate": 1e-3}] * 4}, (), "4 are more than tune.trials=3"),
        ({"scheduler": "hyperband"}, ("train.workers=2",), "trials of one worker"),
        ({"space": {"model.name": "choice([btray_cnn, resnet19])"}}, (), "nearest: resnet1"),
        ({"space": {"model.name": "choice([btray_cnn, resnet18])"}, "scheduler": "pbt"}, (),
         r"model\.name cannot be"),
        ({}, ("run.storage=/proc/here",), "cannot be written"),
        ({}, ("data.cache_limit=1000",), r"lower image\.size"),
        ({"search": "tpe", "warm_start": ["/nowhere"]}, (), "no finished sweep"),
        ({"points": [{"train.learning_rate": 1.0}]}, (), "1 is not in loguniform"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(
    cluster, make_sweep, tmp_path, tune, overrides, message
):
    with pytest.raises(UserError, match=message) as error:
        search(make_sweep(overrides=overrides, **tune))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sweeps" / "sweep" / "sweep.yaml").exists()


def test_the_settings_of_a_sweep_are_kept_as_they_were_given(cluster, make_sweep, tmp_path):
    config = make_sweep(trials=1, overrides=("train.epochs=1", "train.warmup_epochs=0"))
    done = search(config)
    kept = yaml.safe_load((done.folder.local / "sweep.yaml").read_text())
    assert kept["tune"]["space"] == config.tune.space
    assert kept["run"] == {"storage": str(tmp_path / "sweeps"), "name": "sweep"}


def test_a_sweep_ends_when_its_time_is_over(cluster, make_sweep):
    config = make_sweep(trials=40, hours=10 / 3600, overrides=("train.epochs=40",))
    done = search(config)
    assert len(done.outcome.trials) < 40
    assert done.outcome.count("stopped") > 0
    assert done.bundle.card.metrics["val_macro_f1"] == done.outcome.score(done.outcome.best)
