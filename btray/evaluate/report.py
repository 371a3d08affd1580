"""What an evaluation leaves behind: JSON, pictures, Markdown and one HTML page."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from btray.core.bundle import Bundle
from btray.core.card import Card
from btray.core.files import reason
from btray.core.metrics import Scores
from btray.core.pages import data_uri, render
from btray.data.dataset import Dataset
from btray.errors import UserError
from btray.evaluate.evaluate import Evaluation
from btray.evaluate.figures import draw_all, draw_mistakes, encode
from btray.evaluate.sections import Overlays, Section, build, decimal, near, percent


def write_report(
    evaluation: Evaluation,
    bundle: Bundle,
    dataset: Dataset,
    directory: Path,
    overlays: Overlays = (),
) -> list[str]:
    """Write the report's files into a folder; return their names.

    Sections stand on the page as far as `evaluation.metrics` has their numbers; it says why not
    for those in its `not_run`. The overlays are shown beside the numbers of explanations.

    Raises:
        UserError: the folder cannot be written.

    """
    metrics, card = evaluation.metrics, bundle.card
    pictures = {
        f"{name}.{kind}": data
        for name, figure in draw_all(metrics).items()
        for kind, data in encode(figure).items()
    }
    mistakes = draw_mistakes(evaluation, dataset)
    if mistakes is not None:
        pictures["mistakes.png"] = mistakes
    title, facts = f"{card.name} on the {evaluation.split} split", _facts(evaluation, card)
    markdown = render(
        "btray.evaluate",
        "report.md.j2",
        title=title,
        headline=_headline(metrics),
        warning=inflated(metrics),
        rows=score_rows(metrics),
        captions={name: text for name, text in CAPTIONS.items() if f"{name}.png" in pictures},
        facts=facts,
    )
    files = {
        "metrics.json": to_json(metrics),
        "predictions.parquet": _predictions(evaluation),
        "report.md": markdown,
        "report.html": page(
            title,
            _headline(metrics),
            build(evaluation, card, overlays),
            facts,
            pictures,
            inflated(metrics),
        ),
        **pictures,
    }
    write_files(files, directory)
    return list(files)


def page(
    title: str,
    headline: Sequence[tuple[str, str, str]],
    sections: Sequence[Section],
    facts: Sequence[tuple[str, str]],
    pictures: Mapping[str, bytes],
    warning: str | None = None,
) -> bytes:
    """Return a page that needs nothing but itself.

    Args:
        title: Of the page.
        headline: Numbers, what they are, and how far they are noise.
        sections: Those whose figures are not among the pictures show none.
        facts: Keys and values.
        pictures: By the names of their files; an SVG is preferred to a PNG.
        warning: What must be known before any number is.

    """
    kinds = {".png": "png", ".svg": "svg+xml"}
    uris = {  # of two with one stem the later, the SVG, counts
        path.stem: data_uri(pictures[path.name], kinds[path.suffix])
        for path in map(Path, sorted(pictures))
    }
    return render(
        "btray.evaluate",
        "report.html.j2",
        title=title,
        headline=headline,
        sections=sections,
        facts=facts,
        warning=warning,
        captions=CAPTIONS,
        pictures=uris,
        wide=WIDE,
        data_uri=data_uri,
    )


def to_json(found: Mapping[str, Any]) -> bytes:
    """Return what a JSON file holds; raises ValueError for NaN."""
    return (json.dumps(found, indent=1, allow_nan=False) + "\n").encode()


def write_files(files: Mapping[str, bytes], directory: Path) -> None:
    """Write files into a folder, which is made; raises UserError if that cannot be done."""
    prepare(directory)
    try:
        for name, data in files.items():
            (directory / name).write_bytes(data)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {reason(error)}") from None


def prepare(directory: Path) -> None:
    """Make the folder of a report; raises UserError if that cannot be done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {reason(error)}") from None


def score_rows(metrics: Scores) -> list[tuple[str, ...]]:
    """Return the table of scores as text: a header, a row a class, and the macro mean."""
    keys = ("precision", "recall", "f1", "auroc")
    rows: list[tuple[str, ...]] = [("class", *keys, "images")]
    for name, scores in metrics["per_class"].items():
        cells = (decimal(scores[key]) for key in keys)
        rows.append((name, *cells, str(scores["support"])))
    means = (decimal(metrics[f"macro_{key}"]) for key in keys)
    rows.append(("macro", *means, str(metrics["rows"])))
    return rows


def inflated(metrics: Scores) -> str | None:
    """Return what to say of scores on images the bundle has seen; None without such images."""
    found = metrics.get("leakage") or {"exact": 0, "near": 0}
    twins = found["exact"] + found["near"]
    if not twins:
        return None
    return (
        f"These scores are inflated: {twins:,} of {metrics['rows']:,} images have a twin in what "
        f"the model was trained or chosen on ({found['exact']:,} the same pixels, "
        f"{found['near']:,} an equal perceptual hash). It may know them by heart."
    )


WIDE: Final = frozenset(
    {
        "roc",
        "precision_recall",
        "reliability",
        "learning",
        "mistakes",
        "comparison",
        "differing",
    }
)
"""Pictures that take the whole width of a page."""

CAPTIONS: Final = {
    "confusion": "Confusion matrix: rows are the true class, shares are of the true class",
    "roc": "ROC curves, one class against the rest; shaded, where there is one, the pointwise 95% "
    "band",
    "precision_recall": "Precision-recall curves and bands, one class against the rest",
    "reliability": "Accuracy of the answers by their confidence, and how many there are",
    "risk_coverage": "Share of wrong answers, by how many of the images are answered",
    "shortcuts": "Accuracy as the signs of style are changed, in blue, or all that is left, in "
    "orange",
    "robustness": "Accuracy under corruptions of growing severity",
    "deletion": "Mean probability of the answer as more and more of the head is removed",
    "learning": "Learning curves of the run",
    "mistakes": "The wrong answers given with most confidence",
    "comparison": "Differences between the models, and recall by class",
    "differing": "Images that the models answer differently, where they differ most first",
}
"""What pictures show, by the names of their files."""


def _headline(metrics: Scores) -> list[tuple[str, str, str]]:
    intervals, groups = metrics.get("intervals") or {}, metrics.get("groups")
    return [
        (f"{metrics['accuracy']:.2%}", "accuracy", near(intervals.get("accuracy"), percent)),
        (decimal(metrics["macro_f1"]), "macro-F1", near(intervals.get("macro_f1"))),
        (decimal(metrics["macro_auroc"]), "macro AUROC", near(intervals.get("macro_auroc"))),
        (f"{metrics['rows']:,}", "images", f"{groups:,} groups" if groups else ""),
    ]


def _predictions(evaluation: Evaluation) -> bytes:
    """Return a Parquet file with a row an image, named by hash and not by file.

    Rows of one group are of one patient or alike: no independent evidence.
    """
    names = np.array(evaluation.class_names)
    columns: dict[str, Any] = {
        "sha256": evaluation.sha256,
        "group": evaluation.about["group_id"],
        "label": names[evaluation.labels],
        "class": names[evaluation.probabilities.argmax(axis=1)],
    }
    for position, name in enumerate(evaluation.class_names):
        columns[f"p_{name}"] = evaluation.probabilities[:, position]
    columns["ood_score"] = evaluation.strangeness
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _facts(evaluation: Evaluation, card: Card) -> list[tuple[str, str]]:
    source = card.provenance
    return [
        ("split", f"{evaluation.split}, {len(evaluation.labels)} images"),
        ("model", f"{card.name}, version {evaluation.metrics['model']['version']}"),
        ("input", f"{card.image.size} x {card.image.size} pixels, {card.image.fit}"),
        ("trained by", f"btray {source.btray_version}, commit {source.code_version or 'unknown'}"),
        ("run", f"{source.run}, epoch {source.epoch + 1}, seed {source.seed}"),
        ("data set", _standing(evaluation)),
        ("images", _origin(evaluation)),
        ("twins", _twins(evaluation.metrics)),
    ]


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


def _twins(metrics: Scores) -> str:
    """Say whether the images were looked up among those the model has seen."""
    found = metrics.get("leakage")
    if not found or not found.get("checked", True):
        return "not looked for among the images the model was trained and chosen on"
    if inflated(metrics):
        return "found among the images the model was trained or chosen on; see the warning"
    by = "pixels and by perceptual hash" if found.get("near_checked", True) else "pixels"
    return f"none found among the images the model was trained and chosen on, by {by}"
