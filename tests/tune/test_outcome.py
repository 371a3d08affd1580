import json
import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from btray.config import Config
from btray.errors import UserError
from btray.tune.outcome import LEAST_TRIALS, Failure, Outcome, Trial
from btray.tune.space import Space

OBJECTIVES = ["macro_f1", "latency_ms", "parameters"]


def row(epoch, **scores):
    """A row of a history; scores by their names without `val_`."""
    return {"epoch": epoch, "train_loss": 1.0} | {f"val_{k}": v for k, v in scores.items()}


def trial(name, scores=(), state="finished", epochs=10, metric="macro_f1", **more):
    """A trial with these scores, an epoch each."""
    history = [row(epoch, **{metric: score}) for epoch, score in enumerate(scores)]
    return Trial(name, more.pop("point", {}), state, history, epochs, 1.0, **more)


def outcome(*trials, metric="macro_f1", objectives=()):
    return Outcome("s", metric, list(objectives), "tpe", "asha", 0, "0" * 64, list(trials))


def space(**tree):
    """A space whose paths are of `train`, unless they have a section, `__` for the dot."""
    paths = {key.replace("__", ".") if "__" in key else f"train.{key}": tree[key] for key in tree}
    return Space.parse(paths, Config())


def scored(space, function, number, metric="macro_f1"):
    """Trials at random points of a space, with what a function makes of the point."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [space.suggest(study.ask()) for _ in range(number)]
    return [trial(f"t{n}", [function(p)], point=p, metric=metric) for n, p in enumerate(points)]


# Scores.


@pytest.mark.parametrize(
    ("metric", "score", "epoch"),
    [("macro_f1", 0.8, 1), ("accuracy", 0.9, 2), ("macro_auroc", 0.7, 2), ("loss", 0.3, 0)],
)
def test_the_score_is_the_best_of_all_epochs(metric, score, epoch):
    history = [
        row(0, macro_f1=0.5, accuracy=0.6, loss=0.3),
        row(1, macro_f1=0.8, accuracy=0.7, loss=0.4),
        row(2, macro_f1=0.8, accuracy=0.9, loss=0.5, macro_auroc=0.7),
    ]
    one = Trial("a", {}, "finished", history, 3, 1.0)
    found = outcome(one, metric=metric)
    assert (found.score(one), found.best_epoch(one)) == (score, epoch)


@pytest.mark.parametrize("scores", [[], [math.nan], [math.inf]])
def test_without_a_number_there_is_no_score(scores):
    one = trial("a", scores)
    found = outcome(one)
    assert found.score(one) is None
    assert found.best_epoch(one) is None
    assert found.best is None
    assert found.best_so_far() == []


def test_a_score_that_is_no_number_does_not_count():
    one = trial("a", [math.nan, 0.4, math.inf, 0.3])
    assert (outcome(one).score(one), outcome(one).best_epoch(one)) == (0.4, 1)


@pytest.mark.parametrize(("metric", "best"), [("macro_f1", "b"), ("loss", "a")])
def test_the_best_of_equals_is_the_earlier(metric, best):
    trials = [trial(n, [s], metric=metric) for n, s in (("a", 0.1), ("b", 0.9), ("c", 0.9))]
    trials.append(trial("d", [0.1], metric=metric))
    assert outcome(*trials, metric=metric).best.id == best


def test_a_failed_trial_is_not_the_best_whatever_its_score():
    trials = [trial("a", [0.9], "failed"), trial("b", [0.5], "stopped"), trial("c")]
    found = outcome(*trials)
    assert found.best.id == "b"
    assert [t.id for t in found.ranked()] == ["a", "b", "c"]
    assert found.best_so_far() == [(2, 0.5)]


def test_ranked_keeps_the_order_of_equals_and_ends_with_those_without_a_score():
    trials = [trial("a"), trial("b", [0.2]), trial("c", [0.3]), trial("d", [0.2]), trial("e")]
    assert [t.id for t in outcome(*trials).ranked()] == ["c", "b", "d", "a", "e"]
    trials = [trial("a", metric="loss"), trial("b", [2], metric="loss")]
    trials += [trial("c", [1], metric="loss"), trial("d", [0], metric="loss")]
    assert [t.id for t in outcome(*trials, metric="loss").ranked()] == ["d", "c", "b", "a"]


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6))
def test_best_so_far_is_the_best_of_all_epochs_by_then(histories):
    trials = [trial(str(n), scores) for n, scores in enumerate(histories)]
    flat = [score for scores in histories for score in scores]
    expected = [(n, max(flat[:n])) for n in range(1, len(flat) + 1)]
    assert outcome(*trials).best_so_far() == expected
    losses = [trial(str(n), scores, metric="loss") for n, scores in enumerate(histories)]
    expected = [(n, min(flat[:n])) for n in range(1, len(flat) + 1)]
    assert outcome(*losses, metric="loss").best_so_far() == expected


# The Pareto front.

measured = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.booleans())


@given(st.lists(measured, max_size=12))
def test_the_pareto_front_by_brute_force(values):
    trials = [
        trial(str(n), [f1], "failed" if bad else "finished", latency_ms=ms, parameters=size)
        for n, (f1, ms, size, bad) in enumerate(values)
    ]
    front = {int(t.id) for t in outcome(*trials, objectives=OBJECTIVES).pareto()}
    sound = {n: v[:3] for n, v in enumerate(values) if not v[3]}
    for n, (f1, ms, size) in sound.items():
        better = [
            m
            for m, (other_f1, other_ms, other_size) in sound.items()
            if not (other_f1 < f1 or other_ms > ms or other_size > size) and sound[m] != sound[n]
        ]
        assert (n in front) == (not better)
        # Whatever is not on the front, something on the front is better.
        assert n in front or front & set(better)
    assert front <= set(sound)


def test_a_trial_without_a_value_is_not_on_the_front():
    trials = [
        trial("a", [0.5], latency_ms=1.0, parameters=1),
        trial("b", [0.9], parameters=1),
        trial("c", latency_ms=0.1, parameters=1),
        trial("d", [0.4], latency_ms=0.5, parameters=1),
        trial("e", [0.4], latency_ms=0.6, parameters=1),
    ]
    assert [t.id for t in outcome(*trials, objectives=OBJECTIVES).pareto()] == ["a", "d"]


def test_without_objectives_there_is_no_front():
    assert outcome(trial("a", [0.5])).pareto() == []


def test_another_score_counts_at_the_epoch_of_the_best():
    history = [row(0, macro_f1=0.5, loss=0.1), row(1, macro_f1=0.8, loss=0.4)]
    one = Trial("a", {}, "finished", history, 2, 1.0, parameters=7, latency_ms=1.5)
    found = outcome(one, objectives=["macro_f1", "loss"])
    values = [found.value(one, name) for name in ("macro_f1", "loss", "parameters", "latency_ms")]
    assert values == [0.8, 0.4, 7, 1.5]
    assert found.value(one, "accuracy") is None


# Epochs.


def test_epochs_spent_planned_and_saved():
    trials = [
        trial("a", [0.1] * 10),
        trial("b", [0.1] * 6),  # its own patience
        trial("c", [0.1] * 2, "stopped"),
        trial("d", [0.1] * 3, "failed"),
    ]
    found = outcome(*trials)
    assert (found.epochs_spent(), found.epochs_planned()) == (21, 40)
    assert found.saved() == pytest.approx(1 - 18 / 30)
    assert [found.count(s) for s in ("finished", "stopped", "failed", "running")] == [2, 1, 1, 0]


@pytest.mark.parametrize("state", ["running", "paused", "failed"])
def test_what_has_not_ended_has_saved_nothing(state):
    assert outcome(trial("a", [0.1], state)).saved() is None
    assert outcome(trial("a", [0.1], state), trial("b", [0.1] * 5)).saved() == 0.5
    assert outcome().saved() is None


# Errors.


def test_errors_are_told_once_each_the_commonest_first():
    trials = [
        trial("a", error="lost", failures=1),
        trial("b", state="failed", error="out of\n  memory"),
        trial("c", state="failed", error="out of memory"),
        trial("d", state="failed"),
        trial("e", [0.5]),
    ]
    assert outcome(*trials).errors() == [
        Failure("out of memory", ["b", "c"]),
        Failure("lost", ["a"]),
        Failure("no error was recorded", ["d"]),
    ]


# Importance.


def test_importance_is_the_share_of_the_variance_with_a_logarithm_where_it_was_searched():
    dimensions = space(learning_rate="loguniform(1e-5, 1e-1)", model__dropout="uniform(0, 0.5)")

    def function(point):
        rate = math.log10(point["train.learning_rate"])
        return 0.5 - 0.05 * abs(rate + 3) + 0.2 * point["model.dropout"]

    found = outcome(*scored(dimensions, function, 200)).importance(dimensions)
    # |u| over [-2, 2] has variance 1/3, and v over [0, 0.5] has 1/48.
    of_rate, of_dropout = 0.05**2 / 3, 0.2**2 / 48
    expected = of_rate / (of_rate + of_dropout)
    assert found.shares["train.learning_rate"] == pytest.approx(expected, abs=0.05)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert (found.reason, found.left_out, found.trials) == (None, [], 200)


def test_importance_without_logarithms_is_what_optuna_says():
    dimensions = space(label_smoothing="uniform(0, 0.5)", model__dropout="uniform(0, 0.5)")
    trials = scored(
        dimensions, lambda p: p["model.dropout"] ** 2 + 0.1 * p["train.label_smoothing"], 30
    )
    study = optuna.create_study()
    for one in trials:
        study.add_trial(
            optuna.trial.create_trial(
                params=one.point,
                distributions={path: FloatDistribution(0, 0.5) for path in one.point},
                value=one.history[0]["val_macro_f1"],
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    expected = optuna.importance.get_param_importances(study, evaluator=evaluator)
    found = outcome(*trials).importance(dimensions).shares
    assert found == pytest.approx(expected)
    assert list(found) == list(expected) == ["model.dropout", "train.label_smoothing"]


def test_what_is_not_in_every_trial_is_left_out():
    dimensions = space(
        loss="choice([cross_entropy, focal])",
        focal_gamma={"space": "uniform(1, 3)", "when": {"train.loss": "focal"}},
        image__clip_percentiles="choice([[0, 100], [1, 99]])",
    )
    trials = scored(dimensions, lambda p: 1.0 * (p["train.loss"] == "focal"), 20, metric="loss")
    found = outcome(*trials, metric="loss").importance(dimensions)
    assert found.left_out == ["train.focal_gamma"]
    assert list(found.shares) == ["train.loss", "image.clip_percentiles"]
    assert found.shares["train.loss"] > 0.9


def test_trials_without_a_score_do_not_count_for_importance():
    dimensions = space(label_smoothing="uniform(0, 0.5)", model__dropout="uniform(0, 0.5)")
    trials = scored(dimensions, lambda p: p["model.dropout"], 12)
    before = outcome(*trials).importance(dimensions)
    bare = trial("x", state="failed", point={"model.dropout": 0.1})
    assert outcome(*trials, bare).importance(dimensions) == before


def flat(point):
    return 0.5


def dropout(point):
    return point["model.dropout"]


@pytest.mark.parametrize(
    ("function", "number", "point", "reason"),
    [
        (dropout, LEAST_TRIALS - 1, {}, "7 trials have a score; it takes at least 8"),
        (dropout, 0, {}, "0 trials have a score; it takes at least 8"),
        (flat, 20, {}, "all trials have the same score"),
        (dropout, 20, {"train.label_smoothing": 0.1}, "1 hyperparameters vary and are in every"),
        (dropout, 20, {"train.label_smoothing": None}, "0.9 is not in uniform(0, 0.5)"),
    ],
)
def test_importance_says_why_it_cannot_tell(function, number, point, reason):
    dimensions = space(label_smoothing="uniform(0, 0.5)", model__dropout="uniform(0, 0.5)")
    trials = scored(dimensions, function, number)
    for one in trials:
        one.point |= {k: v for k, v in point.items() if v is not None}
    if None in point.values():
        trials[3].point["train.label_smoothing"] = 0.9
    found = outcome(*trials).importance(dimensions)
    assert found.shares is None
    assert reason in found.reason


def test_optunas_log_is_as_before():
    dimensions = space(label_smoothing="uniform(0, 0.5)", model__dropout="uniform(0, 0.5)")
    optuna.logging.set_verbosity(optuna.logging.INFO)
    outcome(*scored(dimensions, dropout, 10)).importance(dimensions)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


# JSON.


def whole():
    return Outcome(
        "s",
        "loss",
        ["loss", "latency_ms"],
        "tpe",
        "asha",
        3,
        "f" * 64,
        [
            Trial("a", {"train.loss": "focal", "x": [0.0, 1], "y": None}, "stopped",
                  [row(0, loss=0.5), row(1, loss=0.4, macro_auroc=0.9)], 9, 2.5, 7, 1.25),
            Trial("b", {}, "failed", [], 9, 0.0, error="ouch", failures=2),
        ],
        12.5,
    )  # fmt: skip


def test_json_gives_the_same_outcome():
    text = json.dumps(whole().to_json(), allow_nan=False)
    assert Outcome.from_json(json.loads(text)) == whole()
    assert Outcome.from_json(json.loads(text) | {"summary": {}}) == whole()


def test_json_has_no_numbers_that_are_none_and_no_tuples():
    one = trial("a", [math.nan, 0.5, -math.inf], point={"image.clip_percentiles": (0.0, 99.0)})
    found = outcome(one).to_json()
    assert [r["val_macro_f1"] for r in found["trials"][0]["history"]] == [None, 0.5, None]
    assert found["trials"][0]["point"] == {"image.clip_percentiles": [0.0, 99.0]}
    json.dumps(found, allow_nan=False)
    again = Outcome.from_json(found)
    assert [r.get("val_macro_f1") for r in again.trials[0].history] == [None, 0.5, None]
    assert again.score(again.trials[0]) == 0.5


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "not the outcome of a sweep: "),
        ({}, "not the outcome of a sweep: name: Field required"),
        (whole().to_json() | {"metric": "f1"}, "metric 'f1': must be one of macro_f1"),
        (whole().to_json() | {"trials": [1]}, "trials.0: "),
        (whole().to_json() | {"trials": whole().to_json()["trials"] * 2}, "same id"),
    ],
)
def test_other_json_is_refused(found, says):
    with pytest.raises(UserError) as caught:
        Outcome.from_json(found)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="metric 'f1': must be one of macro_f1, accuracy"):
        outcome(metric="f1")
    with pytest.raises(ValueError, match="objective 'size': must be one of"):
        outcome(objectives=["macro_f1", "size"])
    with pytest.raises(ValueError, match="state 'done': must be one of running"):
        trial("a", state="done")
    with pytest.raises(ValueError, match="two trials have the same id"):
        outcome(trial("a"), trial("a"))
