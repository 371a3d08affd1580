import json
import math
import re

import numpy as np
import pytest

from btray.config import Config, dump_config
from btray.core.pages import NOTICE
from btray.tune.outcome import Importance, Outcome, Trial
from btray.tune.plots import _range, _Scale, _Scores, numbered_front, plot_importance, shown
from btray.tune.report import duration, remarks, summary, table, write_outcome, write_report
from btray.tune.space import Space

PNG = b"\x89PNG\r\n\x1a\n"
SECTIONS = ["Best configuration", "Learning curves", "Best score so far", "Hyperparameters"]
SECTIONS += ["What mattered", "Pareto front", "All trials", "Errors", "Facts"]


@pytest.fixture(scope="module")
def space():
    return Space.parse(
        {
            "train.learning_rate": "loguniform(1e-4, 1e-2)",
            "train.loss": "choice([cross_entropy, focal])",
            "train.focal_gamma": {"space": "uniform(1, 3)", "when": {"train.loss": "focal"}},
            "image.clip_percentiles": "choice([[0, 100], [1, 99]])",
            "train.label_smoothing": "quniform(0, 0.2, 0.1)",
        },
        Config(),
    )


def make(number=12, metric="macro_f1", objectives=("macro_f1", "latency_ms"), **more):
    """A sweep of which every third trial was stopped after two epochs and the fifth failed."""
    draw = np.random.default_rng(0)
    trials = []
    for n in range(number):
        rate = float(10 ** draw.uniform(-4, -2))
        point = {"train.learning_rate": rate, "train.loss": ("cross_entropy", "focal")[n % 2]}
        if n % 2:
            point["train.focal_gamma"] = 1.5
        point |= {"image.clip_percentiles": [0.0, 100.0], "train.label_smoothing": 0.1 * (n % 3)}
        state = "failed" if n == 4 else "stopped" if n % 3 == 0 else "finished"
        epochs = {"failed": 1, "stopped": 2, "finished": 6}[state]
        history = [row(e, 0.9 - abs(math.log10(rate) + 3) / 10 - 0.3 / (e + 1)) for e in range(6)]
        error = "<script>alert('&')</script>\n  of cuda" if state == "failed" else None
        trials.append(
            Trial(f"t{n}", point, state, history[:epochs], 6, 61.0, 1000 + n, 2.0 + n / 10, error)
        )
    return Outcome(
        "one", metric, list(objectives), "tpe", "asha", 0, "ab" * 32, trials, 3725.4, **more
    )


def row(epoch, score):
    """A row of a history."""
    scores = {"val_macro_f1": score, "val_accuracy": score, "val_loss": 1 - score}
    return {"epoch": epoch, "train_loss": 1.0, "learning_rate": 0.1, **scores}


@pytest.fixture(scope="module")
def written(space):
    """Write the report of an outcome; return its files."""

    def write(outcome):
        files = {}
        best = outcome.best
        text = dump_config(space.apply(Config(), best.point)) if best else ""
        write_report(outcome, space, text, files.__setitem__)
        write_outcome(outcome, space, files.__setitem__)
        return files

    return write


@pytest.fixture(scope="module")
def files(written):
    return written(make())


@pytest.fixture(scope="module")
def page(files):
    return files["sweep.html"].decode()


def cells(page, table):
    """The rows of a page's table, without its header."""
    (found,) = re.findall(rf"<table{table}>(.*?)</table>", page, re.DOTALL)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", found, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows][1:]


def test_the_files_are_written(files):
    assert list(files) == ["sweep.png", "sweep.html", "sweep.json"]
    assert files["sweep.png"].startswith(PNG)


def test_the_json_is_the_outcome_and_a_summary(files, space):
    outcome = make()
    found = json.loads(files["sweep.json"])
    assert Outcome.from_json(found) == outcome
    importance = outcome.importance(space)
    assert found["summary"] == {
        "best": outcome.best.id,
        "score": outcome.score(outcome.best),
        "epoch": 5,
        "pareto": [trial.id for trial in outcome.pareto()],
        "epochs_spent": 7 * 6 + 4 * 2 + 1,
        "epochs_planned": 72,
        "saved": pytest.approx(1 - 50 / 66),
        "importance": importance.shares,
    }
    assert set(importance.shares) == {
        "train.learning_rate",
        "train.loss",
        "image.clip_percentiles",
        "train.label_smoothing",
    }


def test_the_page_needs_nothing_but_itself(page):
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')]{0,22})""", page)
    assert sources == ["data:image/png;base64,"] * 5
    assert not re.search(r"https?://|<script|<link|@import", page)


def test_the_sections_of_the_page(written, page):
    assert re.findall("<h2>(.*?)</h2>", page) == SECTIONS
    page = written(make(objectives=()))["sweep.html"].decode()
    assert re.findall("<h2>(.*?)</h2>", page) == [s for s in SECTIONS if s != "Pareto front"]
    assert page.count("<figure>") == 4


def test_the_headline(page):
    outcome = make()
    found = dict(re.findall(r"<li><b>(.*?)</b> (.*?)</li>", page))
    assert found == {
        f"{outcome.score(outcome.best):.4f}": "best validation macro-F1",
        outcome.best.id: "best trial, epoch 6 of 6",
        "12": "trials: 7 finished, 4 stopped, 1 failed",
        "51": "of 72 planned epochs spent",
        "24%": "of epochs saved by stopping early, failed trials left out",
        "1:02:05": "wall time",
        "0:12:12": "time of all trials together",
    }


def test_what_the_best_score_is_worth_stands_beside_it(page):
    assert NOTICE in page
    assert "The best of 11 trials, chosen by its score on the validation split" in page
    assert "Only a separate test split says how good it is" in page
    assert "<code>--split test</code>" in page
    assert page.index("optimistic") < page.index("<h2>")


def test_the_best_configuration_is_in_the_page(page, space):
    outcome = make()
    (text,) = re.findall("<pre>(.*?)</pre>", page, re.DOTALL)
    assert text == dump_config(space.apply(Config(), outcome.best.point))
    assert "<code>btray train --config best.yaml</code>" in page
    best = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page)[: len(outcome.best.point)]
    assert best == [(path, shown(value)) for path, value in outcome.best.point.items()]


def test_all_trials_stand_in_the_page_the_best_first(page, space):
    outcome = make()
    rows = cells(page, ' class="trials"')
    assert rows == table(outcome, space)[1:]
    assert [row[0] for row in rows] == [trial.id for trial in outcome.ranked()]
    assert f'<tr class="best"><th scope="row">{outcome.best.id}</th>' in page


def test_a_row_of_the_table(space):
    point = {
        "train.learning_rate": 0.00123456,
        "train.loss": "cross_entropy",
        "image.clip_percentiles": (0.0, 100.0),
        "train.label_smoothing": 0.1,
    }
    done = Trial("a", point, "stopped", [row(0, 0.25), row(1, 0.2)], 9, 61.4, 1234, 5.678)
    bare = Trial("b", {}, "failed", [], 9, 0.0, failures=2)
    header, *rows = table(Outcome("s", "macro_f1", [], "tpe", "asha", 0, "0", [bare, done]), space)
    assert header[:5] == ["trial", "validation macro-F1", "best epoch", "epochs", "state"]
    assert header[5:10] == list(space.distributions())
    assert header[10:] == ["parameters", "latency of one image [ms]", "time", "failures"]
    assert [row[:5] for row in rows] == [
        ["a", "0.2500", "1", "2/9", "stopped"],
        ["b", "-", "-", "0/9", "failed"],
    ]
    assert rows[0][5:10] == ["0.001235", "cross_entropy", "-", "[0.0, 100.0]", "0.1"]
    assert rows[0][10:] == ["1,234", "5.68", "0:01:01", "0"]
    assert rows[1][5:] == [*["-"] * 7, "0:00:00", "2"]


def test_the_front_is_numbered_by_the_first_objective(page):
    outcome = make()
    rows = cells(page, "")
    front = sorted(outcome.pareto(), key=lambda trial: -outcome.score(trial))
    assert [trial.id for trial in numbered_front(outcome)] == [trial.id for trial in front]
    assert rows == [
        [str(n), trial.id, f"{outcome.score(trial):.4f}", f"{trial.latency_ms:.2f}"]
        for n, trial in enumerate(front, start=1)
    ]


def test_what_conditions_leave_out_is_named(page):
    assert "Not rated, as they are not in every trial: <code>train.focal_gamma</code>." in page
    assert "Every trial counts with the best score it reached" in page


def test_importance_that_cannot_be_told_says_why(written):
    page = written(make(4))["sweep.html"].decode()
    assert "Not told: 4 trials have a score; it takes at least 8." in page
    assert "fANOVA" not in page


def test_errors_are_escaped_and_counted(page):
    assert "<script" not in page
    escaped = "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt; of cuda"
    assert f"<li>1 trial (t4): <code>{escaped}</code></li>" in page


def test_odd_names_are_escaped(written, space):
    outcome = make()
    outcome.name, outcome.search = "<b>$x_$</b>", "<i>"
    page = written(outcome)["sweep.html"].decode()
    assert "<h1>Sweep &lt;b&gt;$x_$&lt;/b&gt;</h1>" in page
    assert "<i>" not in page
    files = {}
    write_report(outcome, space, "a: <b>", files.__setitem__)
    write_outcome(outcome, space, files.__setitem__)
    assert "<pre>a: &lt;b&gt;</pre>" in files["sweep.html"].decode()


def test_a_failed_trial_that_was_better_is_told():
    outcome = make()
    outcome.trials[4].history = [row(0, 0.99)]
    assert "Trial t4 had reached 0.9900 when it failed" in remarks(outcome)[1]


def test_an_outcome_that_is_not_final_says_so(written):
    outcome = make()
    outcome.trials[0].state, outcome.trials[1].state = "running", "paused"
    page = written(outcome)["sweep.html"].decode()
    assert "2 trials had not come to an end" in page
    assert "1 failed, 1 running, 1 paused" in page


def test_a_sweep_in_which_all_failed(written):
    outcome = make(3)
    outcome.trials = [
        Trial(t.id, t.point, "failed", [], 6, 1.0, error="no") for t in outcome.trials
    ]
    files = written(outcome)
    page = files["sweep.html"].decode()
    assert "there is no best configuration" in page
    assert "best.yaml" not in page
    assert "<figure>" not in page
    assert "No trial has a value of every objective." in page
    assert "<li>3 trials (t0, t1, t2): <code>no</code></li>" in page
    assert files["sweep.png"].startswith(PNG)
    assert json.loads(files["sweep.json"])["summary"] == {
        **dict.fromkeys(["best", "score", "epoch", "saved", "importance"]),
        "pareto": [],
        "epochs_spent": 0,
        "epochs_planned": 18,
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "outcome",
    [
        make(1),
        make(0),
        make(12, "loss", ["loss", "parameters"]),
        make(12, "macro_auroc", ["macro_auroc", "latency_ms"]),
        make(45, objectives=["macro_f1", "latency_ms", "parameters"]),
        make(12, objectives=["latency_ms", "macro_f1"]),
        make(12, objectives=["macro_f1"]),
    ],
    ids=["one", "none", "loss", "no score", "three objectives", "cost first", "one objective"],
)
def test_any_outcome_has_a_report(written, outcome):
    page = written(outcome)["sweep.html"].decode()
    assert len(cells(page, ' class="trials"')) == len(outcome.trials)


@pytest.mark.filterwarnings("error")
def test_equal_scores_and_one_epoch_have_a_report(written):
    outcome = make()
    for trial in outcome.trials:
        trial.history = [row(0, 0.5)]
    assert written(outcome)["sweep.html"].decode().count("<figure>") == 4


def test_the_report_is_the_same_twice(written, files):
    assert written(make()) == files


# Axes.


def dimension(space, path):
    (found,) = (d for d in space.dimensions if d.path == path)
    return found


def test_the_height_of_a_logarithmic_value(space):
    scale = _Scale(dimension(space, "train.learning_rate"), space, make().trials)
    heights = [scale.height({"train.learning_rate": v}, 0.01) for v in (1e-4, 1e-3, 1e-2)]
    assert heights == pytest.approx([0, 0.5, 1])
    texts = [text for _, text in scale.ticks()]
    assert texts == ["0.0001", "0.0002", "0.0005", "0.001", "0.002", "0.005", "0.01"]
    assert not scale.conditional


def test_the_height_of_a_choice(space):
    scale = _Scale(dimension(space, "image.clip_percentiles"), space, make().trials)
    assert scale.height({"image.clip_percentiles": [1.0, 99.0]}, 0.01) == pytest.approx(0.76)
    assert scale.height({"image.clip_percentiles": (0.0, 100.0)}, 0.0) == 0.25
    assert scale.ticks() == [(0.25, "[0.0, 100.0]"), (0.75, "[1.0, 99.0]")]


def test_what_does_not_count_is_a_gap(space):
    scale = _Scale(dimension(space, "train.focal_gamma"), space, make().trials)
    assert scale.conditional
    assert math.isnan(scale.height({"train.loss": "cross_entropy"}, 0.0))
    assert scale.height({"train.focal_gamma": 2.5}, 0.0) == 0.75


@pytest.mark.parametrize(
    ("metric", "scores", "heights", "lowest"),
    [
        ("macro_f1", [0.0, *[0.5] * 8, 0.7, 1.0], [0, 0, 0.4, 1], "\u2264 0.5"),
        ("loss", [9.0, *[2.0] * 8, 1.6, 1.0], [0, 0, 0.4, 1], "\u2265 2"),
        ("loss", [2.0, 1.6, 1.0], [0, 0.32 / 0.92, 1], "\u2265 1.92"),
        ("macro_f1", [0.5, 0.5], [0.5], "0.5"),
    ],
)
def test_the_height_of_a_score(metric, scores, heights, lowest):
    scale = _Scores(Outcome("s", metric, [], "", "", 0, "", []), scores)
    assert [scale.height(s) for s in dict.fromkeys(scores)] == pytest.approx(heights)
    assert scale.ticks()[0][1] == lowest


@pytest.mark.parametrize(("metric", "limits"), [("macro_f1", (8, 10)), ("loss", (0, 2))])
def test_the_best_fifth_fills_an_enlarged_axis(metric, limits):
    outcome = Outcome("s", metric, [], "", "", 0, "", [])
    low, high = _range(range(11), 0.8, outcome)
    assert (low, high) == pytest.approx((limits[0] - 0.12, limits[1] + 0.12))


def test_small_things():
    assert [duration(s) for s in (0.4, 61.6, 90061)] == ["0:00:00", "0:01:02", "1 day, 1:01:01"]
    assert [shown(v) for v in (1e-4 / 3, 3, True, None, "a", [0.0, 1])] == [
        "3.333e-05", "3", "true", "null", "a", "[0.0, 1]"
    ]  # fmt: skip
    assert plot_importance(Importance({"a": 1.0}, None, [], 9)).startswith(PNG)
    assert summary(make(), Importance(None, "few", [], 0))["importance"] is None
