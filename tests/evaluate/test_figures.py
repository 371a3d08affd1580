from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex

from btray.core.calibration import calibrated, fit_calibration
from btray.core.intervals import curve_bands
from btray.core.metrics import evaluate_probabilities, precision_recall_points, roc_points
from btray.core.reliability import before_and_after
from btray.core.selective import selective
from btray.evaluate.figures import (
    MISTAKES,
    _corner,
    draw_all,
    draw_comparison,
    draw_confusion,
    draw_deletion,
    draw_images,
    draw_learning,
    draw_precision_recall,
    draw_reliability,
    draw_risk_coverage,
    draw_robustness,
    draw_roc,
    draw_shortcuts,
    encode,
    most_confident_mistakes,
)

NAMES = ("glioma", "pituitary", "notumor")
ROWS = 120
SHORTCUTS = {
    "images": 50,
    "plain": 0.9,
    "variants": [
        {"name": "without style", "accuracy": 0.8, "interval": [0.7, 0.85]},
        {"name": "brain masked", "accuracy": 0.3, "interval": None},
    ],
    "style_only": {"accuracy": 0.6, "chance": 0.4},
}
ROBUSTNESS = {
    "images": 50,
    "plain": 0.9,
    "corruptions": {"noise": [0.9, 0.8, 0.7, 0.6, 0.5], "bias_field": [0.9, 0.9, 0.9, 0.8, 0.7]},
}
DELETION = {
    "images": 9,
    "auc": 0.4,
    "random_auc": 0.7,
    "steps": [0.0, 0.5, 1.0],
    "curve": [1.0, 0.3, 0.1],
    "random_curve": [1.0, 0.8, 0.3],
}
HISTORY = [
    {"epoch": 0, "train_loss": 2.0, "val_loss": 1.5, "val_accuracy": 0.5, "val_macro_f1": 0.4},
    {"epoch": 1, "train_loss": 1.0, "val_loss": 1.2, "val_accuracy": 0.7},
]


def random_answers(seed=0, edge=2.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(ROWS) % len(NAMES)
    return labels, rng.normal(size=(ROWS, len(NAMES))) + edge * np.eye(len(NAMES))[labels]


@pytest.fixture(scope="module")
def metrics():
    """All there are figures for."""
    labels, logits = random_answers()
    calibration = fit_calibration(*random_answers(1)[::-1])
    probabilities = calibrated(logits, calibration)
    return {
        **evaluate_probabilities(labels, probabilities, NAMES),
        "roc": roc_points(labels, probabilities, NAMES),
        "precision_recall": precision_recall_points(labels, probabilities, NAMES),
        "bands": curve_bands(labels, probabilities, NAMES, np.arange(ROWS), resamples=50),
        "calibration": before_and_after(labels, logits, calibration),
        "selective": selective(labels, probabilities, calibration),
        "shortcuts": SHORTCUTS,
        "robustness": ROBUSTNESS,
        "explanations": {"method": "Grad-CAM", "deletion": DELETION, "pointing": None},
        "history": HISTORY,
    }


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_there_is_a_figure_for_all_there_are_numbers_for(metrics):
    assert sorted(draw_all(metrics)) == [
        "confusion",
        "deletion",
        "learning",
        "precision_recall",
        "reliability",
        "risk_coverage",
        "robustness",
        "roc",
        "shortcuts",
    ]
    absent = dict.fromkeys(set(metrics) - {"confusion_matrix", "per_class"})
    assert list(draw_all(metrics | absent)) == ["confusion"]
    bare = {key: metrics[key] for key in ("confusion_matrix", "per_class", "roc")}
    assert list(draw_all(bare)) == ["confusion", "roc"]


def test_files_are_the_same_when_drawn_again(metrics):
    first, second = draw_all(metrics), draw_all(metrics)
    for name in ("confusion", "roc", "shortcuts"):
        assert encode(first[name]) == encode(second[name])


def test_every_figure_is_a_png_and_an_svg_without_a_date(metrics):
    for figure in draw_all(metrics).values():
        files = encode(figure)
        assert files["png"].startswith(b"\x89PNG\r\n\x1a\n")
        root = ElementTree.fromstring(files["svg"])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert b"dc:date" not in files["svg"]


def test_the_confusion_matrix_shows_counts_and_shares_of_the_true_class():
    matrix = {"class_names": ["a", "b"], "counts": [[3, 1], [0, 0]]}
    shown = texts(draw_confusion(matrix))
    assert {"3\n75.0%", "1\n25.0%", "0\n0.0%"} <= set(shown)


def test_names_are_not_mathematics():
    matrix = {"class_names": ["$x^$", "b$"], "counts": [[3, 1], [0, 2]]}
    assert encode(draw_confusion(matrix))["png"]


@pytest.mark.parametrize(
    ("draw", "kind", "keys"),
    [
        (draw_roc, "roc", ("false_positive_rate", "true_positive_rate")),
        (draw_precision_recall, "precision_recall", ("recall", "precision")),
    ],
)
def test_curves_are_drawn_as_they_are_with_their_bands(metrics, draw, kind, keys):
    for axes in draw(metrics).axes:
        lines = axes.lines[: len(NAMES)]
        for line, curve in zip(lines, metrics[kind].values(), strict=True):
            assert line.get_xdata().tolist() == curve[keys[0]]
            assert line.get_ydata().tolist() == curve[keys[1]]
        assert len(axes.collections) == len(NAMES)
        band = metrics["bands"][kind][NAMES[0]]
        heights = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert {*band["low"], *band["high"]} == set(heights)
    without = draw({**metrics, "bands": None})
    assert not any(axes.collections for axes in without.axes)


def test_the_second_panel_shows_the_corner_of_the_best(metrics):
    labels, logits = random_answers(edge=6)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    good = metrics | {
        "roc": roc_points(labels, probabilities, NAMES),
        "precision_recall": precision_recall_points(labels, probabilities, NAMES),
    }
    _, roc = draw_roc(good).axes
    _, precision_recall = draw_precision_recall(good).axes
    assert roc.get_xlim() == pytest.approx((-0.001, 0.101))
    assert precision_recall.get_xlim() == pytest.approx((0.899, 1.001))
    for axes in (roc, precision_recall):
        assert axes.get_ylim() == pytest.approx((0.899, 1.001))


def test_the_corner_shows_every_curve():
    good = np.array([(0, 0), (0, 0.97), (1, 1)]).T
    poor = np.array([(0, 0), (0.3, 0.8), (1, 1)]).T
    assert _corner([good], 0) == 0.1
    assert _corner([good, poor], 0) == pytest.approx(0.6)
    assert _corner([np.array([(0, 0), (1, 1)]).T], 0) == 1.0
    assert _corner([np.array([(1, 0.7), (0.9, 0.8), (0, 1)]).T], 1) == pytest.approx(0.4)


def test_reliability_has_a_bar_for_each_bin_with_images(metrics):
    before, after, *_ = draw_reliability(metrics["calibration"]).axes
    for axes, when in ((before, "before"), (after, "after")):
        bins = [each for each in metrics["calibration"][when]["bins"] if each["count"]]
        assert [bar.get_height() for bar in axes.patches] == [each["accuracy"] for each in bins]
        assert [bar.get_x() for bar in axes.patches] == [each["low"] for each in bins]


def test_risk_coverage_marks_the_operating_point(metrics):
    found = metrics["selective"] | {
        "target_error": 0.1,
        "operating_point": {"coverage": 0.7, "error": 0.05},
    }
    axes = draw_risk_coverage(found).axes[0]
    curve, target, point = axes.lines
    assert list(curve.get_ydata()) == found["curve"]["risk"]
    assert list(target.get_ydata()) == [0.1, 0.1]
    assert (*point.get_xdata(), *point.get_ydata()) == (0.7, 0.05)
    bare = found | {"target_error": None, "operating_point": None}
    assert len(draw_risk_coverage(bare).axes[0].lines) == 1
    none_answered = found | {"operating_point": {"coverage": 0.0, "error": None}}
    assert len(draw_risk_coverage(none_answered).axes[0].lines) == 2


def test_what_is_left_of_style_has_another_colour():
    axes = draw_shortcuts(SHORTCUTS).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.8, 0.3, 0.6]
    plain, kept, *lost = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert len({plain, kept, *lost}) == 3
    assert lost[0] == lost[1]
    assert list(axes.lines[0].get_xdata()) == [0.4, 0.4]
    without = draw_shortcuts(SHORTCUTS | {"style_only": None}).axes[0]
    assert len(without.patches) == 3
    assert not without.lines


def test_robustness_starts_from_the_images_as_they_are():
    axes = draw_robustness(ROBUSTNESS).axes[0]
    for line, scores in zip(axes.lines, ROBUSTNESS["corruptions"].values(), strict=True):
        assert list(line.get_ydata()) == [0.9, *scores]
        assert list(line.get_xdata()) == [0, 1, 2, 3, 4, 5]
    assert [line.get_label() for line in axes.lines] == ["noise", "bias field"]


def test_deletion_sets_the_map_beside_chance():
    hottest, chance = draw_deletion(DELETION).axes[0].lines
    assert list(hottest.get_ydata()) == DELETION["curve"]
    assert list(chance.get_ydata()) == DELETION["random_curve"]
    assert "0.400" in hottest.get_label()
    assert "0.700" in chance.get_label()


def test_epochs_count_from_one_and_may_lack_a_score():
    losses, scores = draw_learning(HISTORY).axes
    assert list(losses.lines[0].get_xdata()) == [1, 2]
    assert losses.lines[1].get_ydata().tolist() == [1.5, 1.2]
    f1 = scores.lines[1].get_ydata()
    assert f1[0] == 0.4
    assert np.isnan(f1[1])


def test_a_comparison_shows_differences_and_recalls():
    differences, recalls = draw_comparison(
        {
            "models": [{"name": "one"}, {"name": "two"}],
            "differences": {
                "accuracy": {"value": 0.02, "interval": [-0.01, 0.05]},
                "macro_f1": {"value": 0.03, "interval": [0.01, 0.06]},
            },
            "recall": {"glioma": [0.8, 0.9], "ependymoma": [None, None]},
        }
    ).axes
    ends = [list(lines.get_segments()[0][:, 0]) for lines in differences.collections]
    assert ends == [[-0.01, 0.05], [0.01, 0.06]]
    first, second = (line.get_xdata() for line in recalls.lines)
    assert (first[0], second[0]) == (0.8, 0.9)
    assert np.isnan([first[1], second[1]]).all()


def test_the_most_confident_mistakes_come_first():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.1, 0.9]])
    assert most_confident_mistakes(labels, probabilities).tolist() == [2, 1]


def test_no_more_than_so_many_mistakes_are_shown():
    labels = np.zeros(100, dtype=np.int64)
    assert len(most_confident_mistakes(labels, np.tile([0.1, 0.9], (100, 1)))) == MISTAKES


def test_images_are_read_by_hash(dataset):
    names = dataset.table(["sha256"], "test")["sha256"].to_pylist()[:2]
    first = draw_images([(f"${n}", name) for n, name in enumerate(names)], dataset)
    other = draw_images([(f"${n}", name) for n, name in enumerate(names[::-1])], dataset)
    assert first.startswith(b"\x89PNG")
    assert first != other
