"""What an evaluation leaves behind: JSON, pictures, Markdown and one HTML page."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from matplotlib.figure import Figure
from numpy.typing import NDArray

from btray.core.bundle import Bundle, Card
from btray.core.files import reason
from btray.core.images import decode
from btray.core.pages import data_uri, render
from btray.data.dataset import Dataset
from btray.data.sheet import draw_sheet
from btray.errors import UserError
from btray.evaluate.evaluate import Evaluation

MISTAKES: Final = 16
"""Most wrong answers shown as pictures."""


def write_report(
    evaluation: Evaluation, bundle: Bundle, dataset: Dataset, directory: Path
) -> list[str]:
    """Write the report's files into a folder; return their names.

    Raises:
        UserError: the folder cannot be written.

    """
    pictures = {
        "confusion.png": draw_confusion(evaluation.metrics["confusion_matrix"]),
        "roc.png": draw_roc(evaluation.metrics),
    }
    mistakes = draw_mistakes(evaluation, dataset)
    if mistakes is not None:
        pictures["mistakes.png"] = mistakes
    files = {
        "metrics.json": (json.dumps(evaluation.metrics, indent=1, allow_nan=False) + "\n").encode(),
        "predictions.parquet": _predictions(evaluation),
        "report.md": _render("report.md.j2", evaluation, bundle.card, pictures),
        "report.html": _render("report.html.j2", evaluation, bundle.card, pictures),
        **pictures,
    }
    prepare(directory)
    try:
        for name, data in files.items():
            (directory / name).write_bytes(data)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {reason(error)}") from None
    return list(files)


def prepare(directory: Path) -> None:
    """Make the folder of a report; raises UserError if that cannot be done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {reason(error)}") from None


def score_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table of scores as text: a header, a row a class, and the macro mean."""
    keys = ("precision", "recall", "f1", "auroc")
    rows: list[tuple[str, ...]] = [("class", *keys, "images")]
    for name, scores in metrics["per_class"].items():
        cells = (decimal(scores[key]) for key in keys)
        rows.append((name, *cells, str(scores["support"])))
    means = (decimal(metrics[f"macro_{key}"]) for key in keys)
    rows.append(("macro", *means, str(metrics["rows"])))
    return rows


def decimal(value: float | None) -> str:
    """Return a score with four decimals, or say that it is undefined."""
    return "undefined" if value is None else f"{value:.4f}"


def draw_confusion(matrix: dict[str, Any]) -> bytes:
    """Draw counts, coloured by the share of the true class; return a PNG."""
    counts, names = np.array(matrix["counts"]), matrix["class_names"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7.2, 6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, predicted), count in np.ndenumerate(counts):
        dark = shares[true, predicted] > 0.5
        axes.text(
            predicted,
            true,
            f"{count}\n{shares[true, predicted]:.1%}",
            ha="center",
            va="center",
            color="white" if dark else "black",
        )
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion matrix")
    figure.colorbar(image, label="share of the true class")
    return _png(figure)


def draw_roc(metrics: dict[str, Any]) -> bytes:
    """Draw every class's ROC against the rest, whole and the corner where they turn."""
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    corner = _corner(metrics["roc"].values())
    for axes, right in zip(figure.subplots(1, 2), (1.0, corner), strict=True):
        low = 1 - right
        for name, curve in metrics["roc"].items():
            area = metrics["per_class"][name]["auroc"]
            axes.plot(
                curve["false_positive_rate"],
                curve["true_positive_rate"],
                label=f"{name} (AUROC {area:.4f})",
            )
        axes.set(
            xlim=(-0.01 * right, right),
            ylim=(low, 1 + 0.01 * (1 - low)),
            xlabel="false positive rate (1 - specificity)",
            ylabel="true positive rate (sensitivity)",
            title="ROC, one class against the rest" if right == 1 else f"upper left {corner:.0%}",
        )
        axes.grid(alpha=0.3)
        if right == 1:
            axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
            axes.legend(loc="lower right")
    return _png(figure)


def _corner(curves: Iterable[dict[str, list[float]]]) -> float:
    """Return the side of the upper left square that every curve passes through."""
    sides = [
        min(
            max(false, 1 - true)
            for false, true in zip(
                curve["false_positive_rate"], curve["true_positive_rate"], strict=True
            )
        )
        for curve in curves
    ]
    return min(1.0, max(0.1, 2 * max(sides, default=0.0)))


def draw_mistakes(evaluation: Evaluation, dataset: Dataset) -> bytes | None:
    """Draw the wrong answers given with most confidence; None when there are none."""
    worst = most_confident_mistakes(evaluation.labels, evaluation.probabilities)
    if not len(worst):
        return None
    images = dataset.images("sha256", [evaluation.sha256[row] for row in worst])
    names = evaluation.class_names
    tiles = []
    for row in worst.tolist():
        predicted = int(evaluation.probabilities[row].argmax())
        confidence = evaluation.probabilities[row, predicted]
        title = f"is {names[evaluation.labels[row]]}\nsaid {names[predicted]}, {confidence:.0%}"
        tiles.append((title, decode(images[evaluation.sha256[row]])))
    return draw_sheet([tiles[start : start + 8] for start in range(0, len(tiles), 8)])


def most_confident_mistakes(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the rows of up to MISTAKES wrong answers, the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order][:MISTAKES]


def _predictions(evaluation: Evaluation) -> bytes:
    """Return a Parquet file with a row an image, named by hash and not by file."""
    names = np.array(evaluation.class_names)
    columns: dict[str, Any] = {
        "sha256": evaluation.sha256,
        "label": names[evaluation.labels],
        "class": names[evaluation.probabilities.argmax(axis=1)],
    }
    for position, name in enumerate(evaluation.class_names):
        columns[f"p_{name}"] = evaluation.probabilities[:, position]
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _render(template: str, evaluation: Evaluation, card: Card, pictures: dict[str, bytes]) -> bytes:
    return render(
        "btray.evaluate",
        template,
        title=f"{card.name} on the {evaluation.split} split",
        metrics=evaluation.metrics,
        rows=score_rows(evaluation.metrics),
        facts=_facts(evaluation, card),
        pictures={name: data_uri(data) for name, data in pictures.items()},
        captions=_CAPTIONS,
    )


_CAPTIONS: Final = {
    "confusion.png": "Confusion matrix: rows are the true class",
    "roc.png": "ROC curves, one class against the rest",
    "mistakes.png": "The wrong answers given with most confidence",
}


def _facts(evaluation: Evaluation, card: Card) -> Sequence[tuple[str, str]]:
    source = card.provenance
    return (
        ("split", f"{evaluation.split}, {len(evaluation.labels)} images"),
        ("model", f"{card.name}, version {evaluation.metrics['model']['version']}"),
        ("input", f"{card.image.size} x {card.image.size} pixels, {card.image.fit}"),
        ("trained by", f"btray {source.btray_version}, commit {source.code_version or 'unknown'}"),
        ("run", f"{source.run}, epoch {source.epoch + 1}, seed {source.seed}"),
        ("data set", _standing(evaluation)),
        ("images", _origin(evaluation)),
    )


def _origin(evaluation: Evaluation) -> str:
    """Say where the images come from, above all when they are of nobody."""
    known = evaluation.metrics["dataset"]
    content = f"content hash {known['content_hash'][:12]}"
    if known["source"] == "phantom":
        return f"btray's synthetic phantom, NOT patients: no medical meaning; {content}"
    return f"imported from {known['source']}; {content}"


def _standing(evaluation: Evaluation) -> str:
    """Say what the scores are worth: of images held out, trained on, or unknown."""
    if not evaluation.metrics["dataset"]["same_as_trained_on"]:
        return (
            "not the one the model was trained on: btray cannot tell whether these images, or "
            "others of the same patients, were trained on"
        )
    if evaluation.split == "test":
        return "the one the model was trained on; its test split was held out"
    return "the one the model was trained on, and a split it was trained or chosen on: NOT held out"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
