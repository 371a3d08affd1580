"""Pictures of an evaluation, in colours that the colour-blind can tell apart (Okabe & Ito 2008).

They are white behind, for pages of any colour, and the same bytes whenever they are drawn again.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, Final, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from btray.core.images import decode
from btray.core.metrics import Scores
from btray.data.dataset import Dataset
from btray.data.sheet import draw_sheet
from btray.evaluate.evaluate import Evaluation

MISTAKES: Final = 16
"""Most wrong answers shown as pictures."""
STYLE_LEFT: Final = "brain masked"
"""The one change after which a network that looks at the head knows nothing."""
_PER_LINE: Final = 4
_COLOURS: Final = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#999999",
)
_MARKERS: Final = "osD^vPX*"
_BLUE, _ORANGE = _COLOURS[:2]
_WIDE: Final = (10.0, 4.6)
_NARROW: Final = (5.6, 4.2)
"""Inches, of figures with two panels and with one."""


def encode(figure: Figure) -> dict[Literal["png", "svg"], bytes]:
    """Return a figure as a PNG and as an SVG, without a date."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    figure.set_layout_engine("none")  # it is laid out, and that takes as long as drawing
    with rc_context({"svg.hashsalt": "btray"}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}


def draw_all(metrics: Scores) -> dict[str, Figure]:
    """Draw everything in `metrics.json` that there is a figure for, by the names of the files."""
    drawn = {"confusion": draw_confusion(metrics["confusion_matrix"])}
    if metrics["roc"]:
        drawn["roc"] = draw_roc(metrics)
    if metrics.get("precision_recall"):
        drawn["precision_recall"] = draw_precision_recall(metrics)
    for key, (name, draw) in _OF_SECTIONS.items():
        if metrics.get(key):
            drawn[name] = draw(metrics[key])
    if (metrics.get("explanations") or {}).get("deletion"):
        drawn["deletion"] = draw_deletion(metrics["explanations"]["deletion"])
    return drawn


def draw_confusion(matrix: dict[str, Any]) -> Figure:
    """Draw counts, coloured by the share of the true class."""
    counts, names = np.array(matrix["counts"]), _plain(matrix["class_names"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
    for (true, predicted), count in np.ndenumerate(counts):
        share = shares[true, predicted]
        axes.text(
            predicted + 0.5,
            true + 0.5,
            f"{count}\n{share:.1%}",
            ha="center",
            va="center",
            color="white" if share > 0.5 else "black",
        )
    middles = np.arange(len(names)) + 0.5
    axes.set_xticks(middles, names, rotation=20)
    axes.set_yticks(middles, names, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class", aspect="equal")
    return figure


def draw_roc(metrics: Scores) -> Figure:
    """Draw every class's ROC against the rest, whole and the corner where they turn."""
    return _draw_curves(
        metrics,
        kind="roc",
        keys=("false_positive_rate", "true_positive_rate"),
        area=("auroc", "AUROC"),
        labels=("false positive rate (1 - specificity)", "true positive rate (sensitivity)"),
        perfect=0,
    )


def draw_precision_recall(metrics: Scores) -> Figure:
    """Draw every class's precision against its recall, whole and the corner where they turn."""
    return _draw_curves(
        metrics,
        kind="precision_recall",
        keys=("recall", "precision"),
        area=("average_precision", "AP"),
        labels=("recall (sensitivity)", "precision (positive predictive value)"),
        perfect=1,
    )


def _draw_curves(
    metrics: Scores,
    kind: str,
    keys: tuple[str, str],
    area: tuple[str, str],
    labels: tuple[str, str],
    perfect: int,
) -> Figure:
    """Draw curves that are best where x is `perfect` and y is 1."""
    curves = {name: np.array([of[key] for key in keys]) for name, of in metrics[kind].items()}
    bands = (metrics.get("bands") or {}).get(kind, {})
    corner = _corner(curves.values(), perfect)
    sides = (1.0, corner) if corner < 1 else (1.0,)
    figure = Figure(figsize=_WIDE if len(sides) > 1 else _NARROW, layout="constrained")
    panels = figure.subplots(1, len(sides), squeeze=False)[0]
    for axes, side in zip(panels, sides, strict=True):
        for (name, (x, y)), colour in zip(curves.items(), cycle(_COLOURS), strict=False):
            score = metrics["per_class"][name][area[0]]
            axes.plot(x, y, color=colour, label=_plain([f"{name} ({area[1]} {score:.4f})"])[0])
            if name in bands:
                band = bands[name]
                axes.fill_between(
                    band["grid"], band["low"], band["high"], color=colour, alpha=0.12, linewidth=0
                )
        margin = 0.01 * side
        left = abs(perfect - side) if perfect else 0
        axes.set(xlim=(left - margin, left + side + margin), ylim=(1 - side - margin, 1 + margin))
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.grid(alpha=0.3)
    if len(sides) > 1:
        panels[1].set_title(f"the best {corner:.0%}, enlarged")
    panels[0].set_title("one class against the rest")
    panels[0].legend(loc="lower left" if perfect else "lower right")
    if not perfect:
        panels[0].plot([0, 1], [0, 1], linestyle=":", color="grey")
    return figure


def _corner(curves: Iterable[NDArray[np.float64]], perfect: int) -> float:
    """Return the side of the square at the best corner that every curve [2, n] passes through."""
    sides = [np.maximum(abs(perfect - x), 1 - y).min() for x, y in curves]
    return min(1.0, max(0.1, 2 * float(max(sides, default=0.0))))


def draw_reliability(calibration: dict[str, Any]) -> Figure:
    """Draw the accuracy of the answers by their confidence, before and after the temperature."""
    figure = Figure(figsize=_WIDE, layout="constrained")
    upper, lower = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, when in enumerate(("before", "after")):
        found = calibration[when]
        filled = [each for each in found["bins"] if each["count"]]
        edges = [each["low"] for each in filled]
        widths = [each["high"] - each["low"] for each in filled]
        look: dict[str, Any] = {"width": widths, "align": "edge", "edgecolor": "white"}
        axes, below = upper[column], lower[column]
        axes.bar(
            edges, [each["accuracy"] for each in filled], color=_BLUE, label="accuracy", **look
        )
        means = [each["confidence"] for each in filled]
        rights = np.add(edges, widths)
        axes.hlines(means, edges, rights, color=_ORANGE, linewidth=2, label="mean confidence")
        axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
        ece = found["ece"]
        axes.set_title(f"{when} scaling: ECE {'undefined' if ece is None else f'{ece:.4f}'}")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        below.bar(edges, [each["count"] for each in filled], color="#999999", log=True, **look)
        below.minorticks_off()
        below.set(xlabel="confidence: probability of the answer", ylim=(0.5, None))
    upper[0].set(ylabel="share of right answers")
    upper[0].legend(loc="upper left")
    lower[0].set(ylabel="images")
    return figure


def draw_risk_coverage(selective: dict[str, Any]) -> Figure:
    """Draw the share of wrong answers against the share of rows answered."""
    figure = Figure(figsize=_NARROW, layout="constrained")
    axes, point = figure.subplots(), selective["operating_point"] or {}
    axes.plot(selective["curve"]["coverage"], selective["curve"]["risk"], color=_BLUE)
    if selective["target_error"] is not None:
        target = selective["target_error"]
        axes.axhline(target, color="grey", linestyle=":", label=f"target {target:.1%}")
    if point.get("error") is not None:
        axes.plot(point["coverage"], point["error"], "o", color=_ORANGE, label="at the threshold")
    axes.set(xlabel="share of images answered, the most confident first", xlim=(0, 1.02))
    axes.set(ylabel="share of wrong answers among them")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    _percent(axes.xaxis, axes.yaxis)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left")
    return figure


def draw_shortcuts(shortcuts: dict[str, Any]) -> Figure:
    """Draw the accuracy on images without the signs of style, and on those signs alone."""
    variants, style = shortcuts["variants"], shortcuts["style_only"]
    bars = [("as they are", shortcuts["plain"], None, "#999999")]
    for variant in variants:
        name = variant["name"].replace("_", " ")
        colour = _ORANGE if name == STYLE_LEFT else _BLUE
        bars.append((name, variant["accuracy"], variant["interval"], colour))
    if style:
        bars.append(("style only, no network", style["accuracy"], None, _ORANGE))
    figure = Figure(figsize=(5.6, 1.0 + 0.34 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, (_, accuracy, interval, colour) in enumerate(bars):
        axes.barh(place, accuracy, color=colour)
        end = accuracy
        if interval:
            axes.hlines(place, *interval, color="black", linewidth=1.5)
            end = max(end, interval[1])
        axes.text(end + 0.01, place, f"{accuracy:.1%}", va="center")
    if style:
        axes.axvline(style["chance"], color="black", linestyle=":", label="commonest class")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy", xlim=(0, 1.14))
    axes.set_xticks(np.linspace(0, 1, 6))
    _percent(axes.xaxis)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_robustness(robustness: dict[str, Any]) -> Figure:
    """Draw the accuracy by the severity of every corruption; at 0 the images are as they are."""
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    looks = zip(cycle(_COLOURS), cycle(_MARKERS), strict=False)
    for (name, scores), (colour, marker) in zip(
        robustness["corruptions"].items(), looks, strict=False
    ):
        axes.plot(
            [robustness["plain"], *scores],
            color=colour,
            marker=marker,
            markersize=5,
            label=name.replace("_", " "),
        )
    axes.set(xlabel="severity", ylabel="accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _percent(axes.yaxis)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def draw_deletion(deletion: dict[str, Any]) -> Figure:
    """Draw the mean probability of the answer while the head is removed, the hottest first."""
    figure = Figure(figsize=_NARROW, layout="constrained")
    axes = figure.subplots()
    for key, area, colour, label in (
        ("curve", "auc", _BLUE, "hottest first"),
        ("random_curve", "random_auc", "#999999", "at random"),
    ):
        axes.plot(
            deletion["steps"], deletion[key], color=colour, label=f"{label} ({deletion[area]:.3f})"
        )
    axes.set(xlabel="share of the head removed", ylabel="mean probability of the answer")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _percent(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(title="area under the curve")
    return figure


def draw_learning(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw loss and validation scores over the epochs of a run."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    epochs = [row["epoch"] + 1 for row in history]
    for axes, key, label in (
        (losses, "train_loss", "training"),
        (losses, "val_loss", "validation"),
        (scores, "val_accuracy", "accuracy"),
        (scores, "val_macro_f1", "macro-F1"),
    ):
        values = np.array([row.get(key) for row in history], dtype=np.float64)
        axes.plot(epochs, values, label=label, marker=".", color=_COLOURS[len(axes.lines)])
    losses.set(title="loss", ylabel="cross-entropy")
    scores.set(title="validation", ylabel="score")
    for axes in (losses, scores):
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


_OF_SECTIONS: Final[dict[str, tuple[str, Callable[[Any], Figure]]]] = {
    "calibration": ("reliability", draw_reliability),
    "selective": ("risk_coverage", draw_risk_coverage),
    "shortcuts": ("shortcuts", draw_shortcuts),
    "robustness": ("robustness", draw_robustness),
    "history": ("learning", draw_learning),
}
"""Names of figures and who draws them, by the key of `metrics.json` that they are given."""


def draw_comparison(result: dict[str, Any]) -> Figure:
    """Draw what `btray.evaluate.compare.compare` returns: differences, and recall by class."""
    figure = Figure(figsize=_WIDE, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    differences = result["differences"]
    for place, found in enumerate(differences.values()):
        left.hlines(place, *found["interval"], color=_BLUE, linewidth=2)
        left.plot(found["value"], place, "o", color=_BLUE)
    left.axvline(0, color="grey", linestyle=":")
    left.set_yticks(range(len(differences)), [_SCORES[name] for name in differences])
    left.set(xlabel="second less first, 95% interval", ylim=(len(differences) - 0.5, -0.5))
    left.set_title("above 0 the second is better")
    recalls = result["recall"]
    for which, (colour, marker) in enumerate(((_ORANGE, "o"), (_BLUE, "D"))):
        values = np.array([pair[which] for pair in recalls.values()], dtype=np.float64)
        name = _plain([result["models"][which]["name"]])[0]
        label = f"{('first', 'second')[which]}: {name}"
        right.plot(values, range(len(values)), marker, color=colour, label=label, alpha=0.8)
    right.set_yticks(range(len(recalls)), _plain(recalls))
    right.set(xlabel="recall (sensitivity)", ylim=(len(recalls) - 0.5, -0.5))
    right.grid(alpha=0.3)
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return figure


_SCORES: Final = {"accuracy": "accuracy", "macro_f1": "macro-F1"}


def draw_mistakes(evaluation: Evaluation, dataset: Dataset) -> bytes | None:
    """Draw the wrong answers given with most confidence as a PNG; None when there are none."""
    names, tiles = evaluation.class_names, []
    for row in most_confident_mistakes(evaluation.labels, evaluation.probabilities).tolist():
        predicted = int(evaluation.probabilities[row].argmax())
        confidence = evaluation.probabilities[row, predicted]
        title = f"is {names[evaluation.labels[row]]}\nsaid {names[predicted]}, {confidence:.0%}"
        tiles.append((title, evaluation.sha256[row]))
    return draw_images(tiles, dataset) if tiles else None


def most_confident_mistakes(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the rows of up to MISTAKES wrong answers, the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order][:MISTAKES]


def draw_images(tiles: Sequence[tuple[str, str]], dataset: Dataset) -> bytes:
    """Draw images of a data set by title and hash (`sha256`), four in a line, as a PNG."""
    images = dataset.images("sha256", [sha256 for _, sha256 in tiles])
    decoded = [(_plain([title])[0], decode(images[sha256])) for title, sha256 in tiles]
    lines = [decoded[start : start + _PER_LINE] for start in range(0, len(decoded), _PER_LINE)]
    return draw_sheet(lines)


def _plain(names: Iterable[str]) -> list[str]:
    """Return names that matplotlib does not take for mathematics."""
    return [name.replace("$", r"\$") for name in names]


def _percent(*scales: Any) -> None:  # noqa: ANN401 - the axes of matplotlib's Axes
    for scale in scales:
        scale.set_major_formatter(PercentFormatter(1))
