import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest

from btray.core.calibration import calibrated
from btray.core.metrics import evaluate_probabilities, roc_points
from btray.core.pages import NOTICE
from btray.errors import UserError
from btray.evaluate import report
from btray.evaluate.evaluate import ABOUT, Evaluation
from btray.evaluate.figures import draw_mistakes
from btray.evaluate.numbers import assess
from btray.evaluate.report import inflated, write_report
from btray.evaluate.sections import SUBGROUPS, between, build, decimal

PNG = b"\x89PNG\r\n\x1a\n"


def evaluation_of(bundle, dataset, split="test", right=False, same=True):
    """An evaluation of a split with random answers, or none but right ones."""
    rows = dataset.table([*ABOUT, "label"], split).to_pydict()
    names = bundle.card.class_names
    labels = np.array([names.index(label) for label in rows["label"]], dtype=np.int64)
    noise = np.random.default_rng(0).normal(size=(len(labels), len(names)))
    logits = (noise + (50 if right else 1) * np.eye(len(names))[labels]).astype(np.float32)
    probabilities = calibrated(logits, bundle.card.calibration)
    metrics = {
        **evaluate_probabilities(labels, probabilities, names),
        "roc": roc_points(labels, probabilities, names),
        "split": split,
        "dataset": {"content_hash": "0", "source": "phantom", "same_as_trained_on": same},
        "model": {"name": bundle.card.name, "version": bundle.version},
    }
    return Evaluation(
        split=split,
        class_names=names,
        sha256=rows["sha256"],
        labels=labels,
        logits=logits,
        probabilities=probabilities,
        strangeness=noise[:, 0],
        features=None,
        about={key: rows[key] for key in ABOUT},
        metrics=metrics,
    )


STRESSED = {
    "leakage": {
        "rows": 80,
        "exact": 0,
        "near": 0,
        "near_checked": True,
        "twins": [],
        "allowed": False,
    },
    "shortcuts": {
        "images": 80,
        "plain": 0.81,
        "variants": [
            {"name": "without style", "accuracy": 0.7012, "interval": [0.6, 0.8]},
            {"name": "brain masked", "accuracy": 0.2534, "interval": None},
        ],
        "style_only": {"accuracy": 0.686, "chance": 0.31},
    },
    "robustness": {
        "images": 80,
        "plain": 0.81,
        "corruptions": {"bias_field": [0.8, 0.75, 0.7, 0.65, 0.6]},
    },
    "explanations": {
        "method": "Grad-CAM",
        "deletion": {
            "images": 9,
            "auc": 0.4123,
            "random_auc": 0.7,
            "steps": [0.0, 1.0],
            "curve": [1.0, 0.1],
            "random_curve": [1.0, 0.3],
        },
        "pointing": {"images": 8, "hit_rate": 0.75, "chance": 0.0815},
    },
    "history": [
        {"epoch": 0, "train_loss": 2.0, "val_loss": 1.5, "val_accuracy": 0.5, "val_macro_f1": 0.4}
    ],
}
KINDS = [{"kind": "chest X-ray", "images": 7, "auroc": None, "flagged": 0.857}]
TITLES = {
    "binary": "Tumour or no tumour",
    "calibration": "Calibration",
    "selective": "Abstaining",
    "conformal": "Prediction sets",
    "strange": "Strange images",
    "subgroups": "Subgroups",
    "subjects": "Patients and series",
    "shortcuts": "Shortcuts",
    "robustness": "Robustness",
    "explanations": "Explanations",
    "history": "Learning curves",
}


@pytest.fixture(scope="module")
def evaluation(bundle, dataset):
    return evaluation_of(bundle, dataset)


@pytest.fixture(scope="module")
def fitted(bundle):
    """The bundle with all the thresholds that newer ones have."""
    more = {"target_error": 0.05, "abstain_threshold": 0.61, "tumour_threshold": 0.512}
    calibration = bundle.card.calibration.model_copy(update={**more, "specificity": 0.9512})
    return replace(bundle, card=bundle.card.model_copy(update={"calibration": calibration}))


@pytest.fixture(scope="module")
def full(evaluation, fitted):
    """An evaluation with numbers for every section, of images whose patients are known."""
    patients = [f"p{row // 3}" for row in range(len(evaluation.labels))]
    known = replace(evaluation, about=evaluation.about | {"patient_id": patients})
    metrics = assess(known, fitted) | STRESSED
    return replace(known, metrics=metrics | {"strange": metrics["strange"] | {"kinds": KINDS}})


def with_metrics(evaluation, **changes):
    return replace(evaluation, metrics=evaluation.metrics | changes)


@pytest.fixture(scope="module")
def written(evaluation, bundle, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "deep" / "out"
    return folder, write_report(evaluation, bundle, dataset, folder)


@pytest.fixture(scope="module")
def whole(full, fitted, dataset, tmp_path_factory):
    """The folder of a report with every section."""
    folder = tmp_path_factory.mktemp("whole")
    write_report(full, fitted, dataset, folder, [("is <b>", PNG)])
    return folder


@pytest.fixture
def report_of(bundle, dataset, tmp_path, monkeypatch):
    """Write the report of an evaluation, without pictures; return its Markdown and its HTML."""
    monkeypatch.setattr(report, "draw_all", lambda metrics: {})
    monkeypatch.setattr(report, "draw_mistakes", lambda *_: None)

    def write(evaluation, bundle=bundle, overlays=()):
        write_report(evaluation, bundle, dataset, tmp_path / "out", overlays)
        return [(tmp_path / "out" / f"report.{kind}").read_text() for kind in ("md", "html")]

    return write


def test_the_files_are_written(written):
    folder, names = written
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    assert sorted(names) == [
        "confusion.png",
        "confusion.svg",
        "metrics.json",
        "mistakes.png",
        "predictions.parquet",
        "report.html",
        "report.md",
        "roc.png",
        "roc.svg",
    ]


@pytest.mark.parametrize("name", ["confusion.png", "roc.png", "mistakes.png"])
def test_pictures_are_png(written, name):
    assert (written[0] / name).read_bytes().startswith(PNG)


def test_metrics_are_written_whole(written, evaluation):
    assert json.loads((written[0] / "metrics.json").read_text()) == evaluation.metrics


def test_predictions_hold_every_row_by_hash_and_not_by_file(written, evaluation):
    table = pyarrow.parquet.read_table(written[0] / "predictions.parquet")
    names = evaluation.class_names
    columns = ["sha256", "group", "label", "class", *(f"p_{name}" for name in names), "ood_score"]
    assert table.column_names == columns
    assert table["group"].to_pylist() == evaluation.about["group_id"]
    assert (table["ood_score"].to_numpy() == evaluation.strangeness).all()
    assert table["sha256"].to_pylist() == evaluation.sha256
    assert table["label"].to_pylist() == [names[label] for label in evaluation.labels]
    stored = np.stack([table[f"p_{name}"].to_numpy() for name in names], axis=1)
    assert (stored == evaluation.probabilities).all()


def test_the_table_of_markdown_holds_the_metrics(written, evaluation):
    lines = (written[0] / "report.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    keys = cells[0][1:5]
    assert keys == ["precision", "recall", "f1", "auroc"]
    per_class = evaluation.metrics["per_class"]
    assert [row[0] for row in cells[2:]] == [*per_class, "macro"]
    for row in cells[2:-1]:
        scores = per_class[row[0]]
        assert row[1:] == [*(f"{scores[key]:.4f}" for key in keys), str(scores["support"])]
    means = [f"{evaluation.metrics[f'macro_{key}']:.4f}" for key in keys]
    assert cells[-1][1:] == [*means, str(evaluation.metrics["rows"])]
    assert f"- accuracy: **{evaluation.metrics['accuracy']:.2%}**" in lines


def test_the_table_of_markdown_is_one_block(written):
    lines = (written[0] / "report.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| class"))
    assert [line[:1] for line in lines[first : first + 8]] == ["|"] * 7 + [""]


def test_the_page_needs_nothing_but_itself(written):
    page = (written[0] / "report.html").read_text()
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')]{0,26})""", page)
    pictures = [source for source in sources if not source.startswith("#")]
    assert pictures == ["data:image/svg+xml;base64,"] * 2 + ["data:image/png;base64,iVBO"]
    assert not re.search(r"https?://|<script|<link|@import", page)


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_the_notice_is_in_the_report(written, name):
    assert NOTICE.startswith("Research use only")
    assert NOTICE in (written[0] / name).read_text()


def test_the_page_holds_the_scores_with_their_intervals(full, whole):
    page = (whole / "report.html").read_text()
    first = page[page.index("<table") : page.index("</table>")]
    cells = re.findall(r"<td>([^<]*)(?:<small>([^<]*)</small>)?</td>", first)
    keys = ("precision", "recall", "specificity", "f1", "auroc", "average_precision")
    intervals, wanted = full.metrics["intervals"], []
    for name, scores in full.metrics["per_class"].items():
        for key in keys:
            low, high = intervals[f"per_class.{name}.{key}"]
            wanted.append((f"{scores[key]:.4f}", f"{low:.4f} to {high:.4f}"))
        wanted.append((str(scores["support"]), ""))
    assert cells[: len(wanted)] == wanted
    low, high = intervals["accuracy"]
    assert f"<b>{full.metrics['accuracy']:.2%}</b> accuracy" in page
    assert f"95%: {low:.1%} to {high:.1%}" in page


@pytest.mark.parametrize("key", TITLES)
def test_a_section_stands_there_with_its_numbers_or_not(full, fitted, key):
    titles = [section.title for section in build(full, fitted.card)]
    assert titles == ["Scores", *TITLES.values(), "Most confident mistakes"]
    without = build(with_metrics(full, **{key: None}), fitted.card)
    assert [s.title for s in without] == [t for t in titles if t != TITLES[key]]
    told = with_metrics(full, **{key: None, "not_run": {key: "not asked for; `btray x` has it"}})
    (section,) = [s for s in build(told, fitted.card) if s.title == TITLES[key]]
    assert section.text == "Not measured: not asked for; `btray x` has it."
    assert not section.tables


def test_a_page_with_every_section(full, whole):
    text, page = ((whole / f"report.{kind}").read_text() for kind in ("md", "html"))
    names = {path.name for path in whole.iterdir()}
    drawn = {
        "confusion",
        "roc",
        "precision_recall",
        "reliability",
        "risk_coverage",
        "shortcuts",
        "robustness",
        "deletion",
        "learning",
    }
    assert {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")} <= names
    assert len(re.findall(r"!\[[^]]+\]\(\w+\.png\)", text)) == len(drawn) + 1
    assert page.count("<img") == len(drawn) + 2
    assert 'alt="is &lt;b&gt;"' in page
    for title in TITLES.values():
        assert f">{title}</h2>" in page
    found = full.metrics["calibration"]
    for when in ("before", "after"):
        assert f"<td>{found[when]['ece']:.4f}</td>" in page
    assert "at least 0.512: chosen on validation, where it leaves 95.1%" in page
    assert f"<td>{full.metrics['binary']['fn']}</td>" in page
    assert "confidence is below 0.61 (chosen on validation to leave at most 5.0%" in page
    assert '<th scope="row">chest X-ray</th><td>7</td><td>85.7%</td><td>undefined</td>' in page
    assert "<td>0.7012<small>0.6000 to 0.8000</small></td>" in page
    assert '<th scope="row">brain masked</th><td>0.2534</td>' in page
    assert "gets 68.6% right; the commonest class makes 31.0%" in page
    assert '<th scope="row">bias field</th><td>0.8000</td>' in page
    assert "<td>0.4123</td><td>0.7000</td><td>9</td>" in page
    assert "<td>75.0%</td><td>8.2%</td><td>8</td>" in page
    assert "none found among the images the model was trained and chosen on" in page
    assert not re.search(r"\b(nan|None)\b", page[page.index("<body>") :])


def test_the_worst_subgroup_comes_first_and_the_best_may_be_left_out(full, fitted):
    one = {
        "attribute": "plane",
        "rows": 30,
        "groups": 20,
        "classes": {"glioma": 10, "notumor": 20},
        "macro_f1": 0.5,
        "accuracy_interval": None,
        "gap": -0.1,
        "beyond_noise": False,
    }
    found = [one | {"value": f"v{n}", "accuracy": 0.4 + n / 100} for n in range(SUBGROUPS + 2)]
    found[0] |= {"beyond_noise": True, "accuracy_interval": [0.3, 0.5]}
    found.append(one | {"value": None, "rows": 3, "accuracy": None})
    sections = build(with_metrics(full, subgroups=found), fitted.card)
    (section,) = [s for s in sections if s.title == "Subgroups"]
    rows = section.tables[0].rows[1:]
    assert len(rows) == SUBGROUPS
    assert rows[0][:3] == ["plane: v0", ("0.4000", "0.3000 to 0.5000"), "-0.1000 *"]
    assert rows[1][2] == "-0.1000"
    assert rows[0][-1] == "notumor, 67%"
    assert "2 more accurate ones are in metrics.json" in section.text
    assert "Too few images to tell: plane: unknown (3)." in section.text


def test_images_of_no_known_patient_have_no_section_of_patients(evaluation, fitted):
    known = replace(evaluation, metrics=assess(evaluation, fitted))
    assert known.metrics["subjects"] == {"patients": None, "series": None}
    assert "Patients and series" not in [s.title for s in build(known, fitted.card)]


def test_a_bundle_without_thresholds_is_reported_without_them(evaluation, bundle, report_of):
    known = replace(evaluation, metrics=assess(evaluation, bundle))
    _, page = report_of(known)
    assert "Tumour or no tumour" not in page
    assert "abstains when its prediction set is not one class, or the image is strange." in page


def test_a_threshold_that_was_not_found_is_told(full, fitted):
    missing = full.metrics["selective"] | {"abstain_threshold": None, "operating_point": None}
    sections = build(with_metrics(full, selective=missing), fitted.card)
    (section,) = [s for s in sections if s.title == "Abstaining"]
    assert "no confidence was shown on validation to leave at most 5.0% wrong" in section.text


def test_a_split_of_one_class_is_undefined_and_never_nan(evaluation, fitted, report_of):
    rows = np.flatnonzero(evaluation.labels == 0)
    one = replace(
        evaluation,
        sha256=[evaluation.sha256[row] for row in rows],
        about={key: [values[row] for row in rows] for key, values in evaluation.about.items()},
        **{
            key: getattr(evaluation, key)[rows]
            for key in ("labels", "logits", "probabilities", "strangeness")
        },
    )
    scored = evaluate_probabilities(one.labels, one.probabilities, one.class_names)
    one = with_metrics(one, **scored, roc={})
    _, page = report_of(replace(one, metrics=assess(one, fitted)), fitted)
    assert "<b>undefined</b> macro AUROC" in page
    assert not re.search(r"\b(nan|None)\b", page[page.index("<body>") :])


def test_twins_that_were_allowed_are_a_red_banner(full, fitted, report_of):
    found = {"exact": 3, "near": 4, "twins": ["0"] * 7, "allowed": True}
    leaky = with_metrics(full, leakage=full.metrics["leakage"] | found)
    text, page = report_of(leaky, fitted)
    warning = inflated(leaky.metrics)
    assert f"inflated: 7 of {full.metrics['rows']} images" in warning
    assert f'<p class="warning" role="alert">{warning}</p>' in page
    assert ".warning { order: -1; }" in page
    assert f"> **{warning}**" in text
    assert inflated(full.metrics) is None
    assert inflated({"leakage": None}) is None
    assert 'role="alert"' not in report_of(full, fitted)[1]


@pytest.mark.parametrize(
    ("leakage", "says"),
    [
        (None, "not looked for"),
        ({"exact": 0, "near": 0, "checked": False}, "not looked for"),
        ({"exact": 0, "near": 0, "near_checked": False}, "chosen on, by pixels</dd>"),
        ({"exact": 0, "near": 0}, "chosen on, by pixels and by perceptual hash</dd>"),
        ({"exact": 1, "near": 0}, "see the warning"),
    ],
)
def test_whether_twins_were_looked_for_is_told(evaluation, report_of, leakage, says):
    assert says in report_of(with_metrics(evaluation, leakage=leakage))[1]


def test_overlays_are_shown_without_numbers_of_explanations(evaluation, report_of):
    _, page = report_of(evaluation, overlays=[("first", PNG), ("second", PNG)])
    assert ">Explanations</h2>" in page
    assert page.index("first</figcaption>") < page.index("second</figcaption>")


def test_code_in_a_reason_looks_like_code(evaluation, report_of):
    reasons = {"robustness": "not asked for; `btray evaluate --full` has it"}
    _, page = report_of(with_metrics(evaluation, not_run=reasons))
    assert "<code>btray evaluate --full</code>" in page


def test_odd_names_are_escaped(bundle, evaluation, report_of):
    card = bundle.card.model_copy(update={"name": "<script>alert('&')</script>"})
    odd = type(bundle)(bundle.uri, card, bundle.weights)
    _, page = report_of(evaluation, odd)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt; on the test split" in page


def test_an_undefined_score_says_so(bundle, make_bundle, dataset, report_of, tmp_path):
    names = ("ependymoma", *dataset.manifest.class_names)
    more = make_bundle(tmp_path / "bundle", class_names=names)
    text, page = report_of(evaluation_of(more, dataset), more)
    assert "| ependymoma | 0.0000 | 0.0000 | 0.0000 | undefined | 0 |" in text
    assert "<b>undefined</b> macro AUROC" in page
    assert "nan" not in (tmp_path / "out" / "metrics.json").read_text().lower()


@pytest.mark.parametrize(
    ("split", "same", "says"),
    [
        ("test", True, "its test split was held out"),
        ("train", True, "NOT held out"),
        ("validation", True, "NOT held out"),
        ("test", False, "btray cannot tell whether these images"),
    ],
)
def test_what_the_scores_are_worth(bundle, dataset, report_of, split, same, says):
    text, page = report_of(evaluation_of(bundle, dataset, split, same=same))
    assert says in text
    assert says in page
    assert ("its test split was held out" in text) == (split == "test" and same)


def test_without_mistakes_there_is_no_picture_of_them(bundle, dataset, tmp_path):
    evaluation = evaluation_of(bundle, dataset, right=True)
    write_report(evaluation, bundle, dataset, tmp_path / "out")
    text, page = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert draw_mistakes(evaluation, dataset) is None
    assert not (tmp_path / "out" / "mistakes.png").exists()
    assert "mistakes" not in text
    assert page.count("<img") == 2
    assert "Most confident mistakes" not in page


def test_decimal():
    assert [decimal(1.0), decimal(0.123456), decimal(None)] == ["1.0000", "0.1235", "undefined"]


def test_between():
    assert between([0.5, 0.61234]) == "0.5000 to 0.6123"
    assert between(None) == ""


def test_a_folder_that_cannot_be_made_is_the_users_mistake(evaluation, bundle, dataset, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written") as caught:
        write_report(evaluation, bundle, dataset, tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)


def test_the_report_is_the_same_twice(evaluation, bundle, dataset, written, tmp_path):
    for name in write_report(evaluation, bundle, dataset, tmp_path):
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()
