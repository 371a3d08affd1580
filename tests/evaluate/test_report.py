import json
import re

import numpy as np
import pyarrow.parquet
import pytest

from btray.core.calibration import calibrated
from btray.core.metrics import evaluate_probabilities, roc_points
from btray.core.pages import NOTICE
from btray.errors import UserError
from btray.evaluate.evaluate import Evaluation
from btray.evaluate.report import (
    MISTAKES,
    _corner,
    decimal,
    draw_mistakes,
    most_confident_mistakes,
    score_rows,
    write_report,
)

PNG = b"\x89PNG\r\n\x1a\n"


def evaluation_of(bundle, dataset, split="test", right=False, same=True):
    """An evaluation of a split with random answers, or none but right ones."""
    rows = dataset.table(["sha256", "label"], split).to_pydict()
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
    return Evaluation(split, names, rows["sha256"], labels, logits, probabilities, metrics)


@pytest.fixture(scope="module")
def evaluation(bundle, dataset):
    return evaluation_of(bundle, dataset)


@pytest.fixture(scope="module")
def written(evaluation, bundle, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "deep" / "out"
    return folder, write_report(evaluation, bundle, dataset, folder)


@pytest.fixture
def report_of(bundle, dataset, tmp_path):
    """Write the report of an evaluation; return its Markdown and its HTML."""

    def write(evaluation, bundle=bundle):
        write_report(evaluation, bundle, dataset, tmp_path / "out")
        return [(tmp_path / "out" / f"report.{kind}").read_text() for kind in ("md", "html")]

    return write


def test_the_files_are_written(written):
    folder, names = written
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    assert sorted(names) == [
        "confusion.png",
        "metrics.json",
        "mistakes.png",
        "predictions.parquet",
        "report.html",
        "report.md",
        "roc.png",
    ]


@pytest.mark.parametrize("name", ["confusion.png", "roc.png", "mistakes.png"])
def test_pictures_are_png(written, name):
    assert (written[0] / name).read_bytes().startswith(PNG)


def test_metrics_are_written_whole(written, evaluation):
    assert json.loads((written[0] / "metrics.json").read_text()) == evaluation.metrics


def test_predictions_hold_every_row_by_hash_and_not_by_file(written, evaluation):
    table = pyarrow.parquet.read_table(written[0] / "predictions.parquet")
    names = evaluation.class_names
    assert table.column_names == ["sha256", "label", "class", *(f"p_{name}" for name in names)]
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
    assert f"Accuracy **{evaluation.metrics['accuracy']:.4f}**" in "\n".join(lines)


def test_the_table_of_markdown_is_one_block(written):
    lines = (written[0] / "report.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| class"))
    assert [line[:1] for line in lines[first : first + 8]] == ["|"] * 7 + [""]


def test_the_page_needs_nothing_but_itself(written):
    page = (written[0] / "report.html").read_text()
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')]{0,22})""", page)
    assert sources == ["data:image/png;base64,"] * 3
    assert not re.search(r"https?://|<script|<link|@import", page)


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_the_notice_is_in_the_report(written, name):
    assert NOTICE.startswith("Research use only")
    assert NOTICE in (written[0] / name).read_text()


def test_the_page_holds_the_metrics(written, evaluation):
    page = (written[0] / "report.html").read_text()
    cells = [cell for row in score_rows(evaluation.metrics)[1:] for cell in row[1:]]
    assert re.findall(r"<td>([^<]*)</td>", page) == cells


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


def test_without_mistakes_there_is_no_picture_of_them(bundle, dataset, report_of, tmp_path):
    evaluation = evaluation_of(bundle, dataset, right=True)
    text, page = report_of(evaluation)
    assert draw_mistakes(evaluation, dataset) is None
    assert not (tmp_path / "out" / "mistakes.png").exists()
    assert "mistakes" not in text
    assert page.count("<figure>") == 2


def test_the_most_confident_mistakes_come_first():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.1, 0.9]])
    assert most_confident_mistakes(labels, probabilities).tolist() == [2, 1]


def test_no_more_than_so_many_mistakes_are_shown():
    labels = np.zeros(100, dtype=np.int64)
    assert len(most_confident_mistakes(labels, np.tile([0.1, 0.9], (100, 1)))) == MISTAKES


def test_decimal():
    assert [decimal(1.0), decimal(0.123456), decimal(None)] == ["1.0000", "0.1235", "undefined"]


def test_a_folder_that_cannot_be_made_is_the_users_mistake(evaluation, bundle, dataset, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written") as caught:
        write_report(evaluation, bundle, dataset, tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)


def test_the_report_is_the_same_twice(evaluation, bundle, dataset, written, tmp_path):
    for name in write_report(evaluation, bundle, dataset, tmp_path):
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()


def test_the_roc_corner_shows_every_curve():
    def curve(*points):
        false, true = zip(*points, strict=True)
        return {"false_positive_rate": list(false), "true_positive_rate": list(true)}

    good = curve((0, 0), (0, 0.97), (1, 1))
    poor = curve((0, 0), (0.3, 0.8), (1, 1))
    assert _corner([good]) == 0.1
    assert _corner([good, poor]) == pytest.approx(0.6)
    assert _corner([curve((0, 0), (1, 1))]) == 1.0
