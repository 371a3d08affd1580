"""The parts of a report: what to make of each kind of numbers, as tables and pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from btray.core.calibration import IN_DISTRIBUTION
from btray.core.card import Card
from btray.core.intervals import CONFIDENCE
from btray.core.metrics import Scores
from btray.evaluate.evaluate import Evaluation

SUBGROUPS: Final = 30
"""Most subgroups shown, the worst first."""

Overlays = Sequence[tuple[str, bytes]]
"""Titles and PNGs of explained images."""

Cell = str | tuple[str, str]
"""What stands in a table, and below it, smaller, how far that is noise."""


@dataclass(frozen=True)
class Table:
    """A table on a page."""

    rows: Sequence[Sequence[Cell]]
    """The header first."""
    total: bool = False
    """Whether the last row sums up the others."""


@dataclass(frozen=True)
class Section:
    """A part of a page: what to make of it, its numbers and its pictures."""

    title: str
    text: str
    """How to read it, in a sentence or two; or why it was left out."""
    tables: Sequence[Table] = ()
    figures: Sequence[str] = ()
    """Names of pictures, those of the folder without their ending."""
    overlays: Overlays = ()


def decimal(value: float | None) -> str:
    """Return a score with four decimals, or say that it is undefined."""
    return "undefined" if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """Return a share with one decimal of a per cent, or say that it is undefined."""
    return "undefined" if value is None else f"{value:.1%}"


def between(interval: Sequence[float] | None, form: Callable[[float], str] = decimal) -> str:
    """Return an interval as text, nothing where there is none."""
    return "" if interval is None else f"{form(interval[0])} to {form(interval[1])}"


def near(interval: Sequence[float] | None, form: Callable[[float], str] = decimal) -> str:
    """Return an interval as text that says with what confidence it is one."""
    return f"{CONFIDENCE:.0%}: {between(interval, form)}" if interval else ""


def build(evaluation: Evaluation, card: Card, overlays: Overlays = ()) -> list[Section]:
    """Return the sections there are numbers for, or a reason why there are none."""
    metrics, reasons = evaluation.metrics, evaluation.metrics.get("not_run") or {}
    found: dict[str, Section | None] = {"scores": _scores(metrics)}
    for key, make in _MAKERS.items():
        if metrics.get(key):
            found[key] = make(metrics, card)
        elif key in reasons:
            found[key] = Section(_TITLES[key], f"Not measured: {reasons[key]}.")
        if key == "explanations" and overlays:
            section = found.get(key) or Section(_TITLES[key], "What speaks for the answers.")
            found[key] = replace(section, overlays=overlays)
    wrong = int((evaluation.probabilities.argmax(axis=1) != evaluation.labels).sum())
    if wrong:
        text = f"Wrong are {wrong:,} of {metrics['rows']:,} answers."
        found["mistakes"] = Section("Most confident mistakes", text, figures=("mistakes",))
    return [section for section in found.values() if section is not None]


def _scores(metrics: Scores) -> Section:
    intervals = metrics.get("intervals") or {}
    text = (
        "Recall is the share of a class's images that are found, precision the share of a class's "
        "answers that are right; macro is the mean over the classes. "
    )
    if intervals:
        text += (
            "Below each score is its 95% interval, from resamples of whole groups (patients, or "
            "near duplicates), never of single images."
        )
    else:
        text += _reason(metrics, "intervals", "Intervals")
    rows: list[list[Cell]] = [["class", *_PER_CLASS.values(), "images"]]
    for name, scores in metrics["per_class"].items():
        cells = [
            (decimal(scores[k]), _between(intervals, f"per_class.{name}.{k}")) for k in _PER_CLASS
        ]
        rows.append([name, *cells, f"{scores['support']:,}"])
    cells = [
        (decimal(metrics[f"macro_{k}"]), _between(intervals, f"macro_{k}")) for k in _PER_CLASS
    ]
    rows.append(["macro", *cells, f"{metrics['rows']:,}"])
    overall: list[list[Cell]] = [["all classes", "score"]]
    overall += [
        [title, (decimal(metrics[k]), _between(intervals, k))] for k, title in _OVERALL.items()
    ]
    return Section(
        "Scores",
        text,
        (Table(rows, total=True), Table(overall)),
        ("confusion", "roc", "precision_recall"),
    )


_PER_CLASS: Final = {
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
}

_OVERALL: Final = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "Matthews correlation",
    "kappa": "Cohen's kappa",
}


def _between(intervals: Mapping[str, Sequence[float] | None], path: str) -> str:
    return between(intervals.get(path))


def _reason(metrics: Scores, key: str, what: str) -> str:
    """Say why a part of a section is not there, if that is known."""
    reasons = metrics.get("not_run") or {}
    return f"{what}: {reasons[key]}." if key in reasons else ""


def _binary(metrics: Scores, card: Card) -> Section:
    found = metrics["binary"]
    fitted = card.calibration.specificity
    there = "" if fitted is None else f", where it leaves {fitted:.1%} of the healthy slices below"
    read = {
        "sensitivity": "sensitivity",
        "specificity": "specificity",
        "ppv": "positive predictive value",
        "npv": "negative predictive value",
    }
    scores: list[list[Cell]] = [["at the operating point", "score"]]
    scores += [
        [name, (decimal(found[key]), between(found["intervals"][key]))]
        for key, name in read.items()
    ]
    scores += [["AUROC", decimal(found["auroc"])]]
    scores += [["average precision", decimal(found["average_precision"])]]
    counts: list[list[Cell]] = [
        ["", "called a tumour", "called none"],
        ["tumour", f"{found['tp']:,}", f"{found['fn']:,}"],
        ["no tumour", f"{found['fp']:,}", f"{found['tn']:,}"],
    ]
    curve: list[list[Cell]] = [["with a specificity of", "sensitivity"]]
    curve += [
        [f"at least {wanted}", decimal(value)]
        for wanted, value in found["roc_sensitivity_at_specificity"].items()
    ]
    return Section(
        _TITLES["binary"],
        f"Called a tumour where 1 - p(notumor) is at least {found['threshold']:.4g}: chosen on "
        f"validation{there}, not on these images. The predictive values hold only where, as here, "
        f"{percent(found['prevalence'])} have a tumour. The sensitivities by specificity are read "
        "from the ROC of these very images: no operating points.",
        (Table(scores), Table(counts), Table(curve)),
    )


def _calibration(metrics: Scores, _: Card) -> Section:
    found = metrics["calibration"]
    measures = {
        "ece": "expected calibration error",
        "adaptive_ece": "the same, bins of equal size",
        "mce": "largest calibration error",
        "brier": "Brier score",
        "nll": "negative log likelihood",
    }
    rows: list[list[Cell]] = [["lower is better", "before", "after"]]
    rows += [
        [name, decimal(found["before"][key]), decimal(found["after"][key])]
        for key, name in measures.items()
    ]
    return Section(
        _TITLES["calibration"],
        "Of answers given with a confidence of 80%, 80% should be right: the bars should end "
        "at the dotted line. Before and after the logits are scaled by the bundle's temperature "
        f"{found['temperature']:.4g}, which depends on their entropy (exponent "
        f"{found['entropy_exponent']:.3g}); both were fitted on validation.",
        (Table(rows),),
        ("reliability",),
    )


def _selective(metrics: Scores, _: Card) -> Section:
    found = metrics["selective"]
    point, threshold = found["operating_point"], found["abstain_threshold"]
    target = percent(found["target_error"])
    rule = "when its prediction set is not one class, or the image is strange"
    if threshold is not None:
        chosen = f"chosen on validation to leave at most {target} of the answers wrong"
        rule = f"when its confidence is below {threshold:.4g} ({chosen}), {rule}"
    elif found["target_error"] is not None:
        rule += f"; no confidence was shown on validation to leave at most {target} wrong"
    rows: list[list[Cell]] = [["the most confident answers", ""]]
    if point:
        error = (percent(point["error"]), between(point["error_interval"], percent))
        rows += [
            [
                "answered",
                (percent(point["coverage"]), between(point["coverage_interval"], percent)),
            ],
            ["wrong among them", error],
        ]
    rows += [
        ["area under the curve", decimal(found["aurc"])],
        ["above that of the best order", decimal(found["e_aurc"])],
    ]
    return Section(
        _TITLES["selective"],
        "How much is gained by leaving the least confident answers out. Served, the model "
        f"abstains {rule}.",
        (Table(rows),),
        ("risk_coverage",),
    )


def _conformal(metrics: Scores, card: Card) -> Section:
    found = metrics["conformal"]
    rows: list[list[Cell]] = [["class", "holds the true class"]]
    rows += [
        [name, percent(share)]
        for name, share in zip(card.class_names, found["coverage_per_class"], strict=True)
    ]
    interval = between(found["coverage_interval"], percent)
    rows.append(["all", (percent(found["coverage"]), interval)])
    sizes: list[list[Cell]] = [["classes in the set", "images"]]
    sizes += [[str(size), f"{count:,}"] for size, count in enumerate(found["set_sizes"])]
    return Section(
        _TITLES["conformal"],
        "The set of all classes whose probability is at least "
        f"{card.calibration.set_threshold:.4g} is to hold the true class for "
        f"{found['nominal_coverage']:.0%} of the groups; it does so for "
        f"{percent(found['group_coverage'])} of them. The promise is for all classes together, "
        "not for each.",
        (Table(rows, total=True), Table(sizes)),
    )


def _strange(metrics: Scores, _: Card) -> Section:
    found = metrics["strange"]
    rows: list[list[Cell]] = [["kind of image", "images", "called strange", "AUROC"]]
    rows += [
        [kind["kind"], f"{kind['images']:,}", percent(kind["flagged"]), decimal(kind["auroc"])]
        for kind in found["kinds"] or ()
    ]
    kinds = "The AUROC is of telling a kind of image from this split."
    if not found["kinds"]:
        kinds = _reason(metrics, "kinds", "Other kinds of images")
    return Section(
        _TITLES["strange"],
        "An image is called strange, no slice the model knows, when its score "
        f"({found['method']}) is above {found['threshold']:.4g}. So are "
        f"{percent(found['flagged'])} of this split; the threshold was set for "
        f"{1 - IN_DISTRIBUTION:.0%} on validation. {kinds}",
        (Table(rows),) if len(rows) > 1 else (),
    )


def _subgroups(metrics: Scores, _: Card) -> Section:
    found = metrics["subgroups"]
    scored = [each for each in found if each["accuracy"] is not None]
    rows: list[list[Cell]] = [
        ["subgroup", "accuracy", "gap to all", "macro-F1", "images", "groups", "commonest class"]
    ]
    for each in scored[:SUBGROUPS]:
        gap = f"{each['gap']:+.4f}" + (" *" if each["beyond_noise"] else "")
        accuracy = (decimal(each["accuracy"]), between(each["accuracy_interval"]))
        sizes = [f"{each['rows']:,}", f"{each['groups']:,}"]
        rows.append(
            [_named(each), accuracy, gap, decimal(each["macro_f1"]), *sizes, _commonest(each)]
        )
    text = (
        "The least accurate first. A star marks an interval without the accuracy of all images; "
        "of many subgroups one in twenty has it by chance. A mix of classes unlike that of "
        "the split explains many a gap."
    )
    if len(scored) > SUBGROUPS:
        text += f" {len(scored) - SUBGROUPS:,} more accurate ones are in metrics.json."
    few = [f"{_named(each)} ({each['rows']:,})" for each in found if each["accuracy"] is None]
    if few:
        text += f" Too few images to tell: {', '.join(few[:SUBGROUPS])}."
    return Section(_TITLES["subgroups"], text, (Table(rows),) if scored else ())


def _named(subgroup: dict[str, Any]) -> str:
    return f"{subgroup['attribute']}: {subgroup['value'] or 'unknown'}"


def _commonest(subgroup: dict[str, Any]) -> str:
    name, count = max(subgroup["classes"].items(), key=lambda pair: pair[1])
    return f"{name}, {count / subgroup['rows']:.0%}"


def _subjects(metrics: Scores, _: Card) -> Section | None:
    found = metrics["subjects"]
    ways = {"mean_logit": "mean logit", "max": "most suspicious slice", "vote": "vote"}
    rows: list[list[Cell]] = [
        ["answers of all slices as one", "accuracy", "macro-F1", "macro AUROC", "subjects"]
    ]
    left_out = []
    for level, scores in found.items():
        if scores is None:
            continue
        for key, way in ways.items():
            if scores[key] is not None:
                cells = [decimal(scores[key][k]) for k in ("accuracy", "macro_f1", "macro_auroc")]
                rows.append([f"{level}, {way}", *cells, f"{scores['count']:,}"])
        if scores["excluded"]:
            left_out.append(f"{level} with slices of different tumours ({scores['excluded']:,})")
        if scores["rows_without"]:
            left_out.append(f"images of no known {level} ({scores['rows_without']:,})")
    if not any(found.values()):
        return None
    text = "A subject with slices of a tumour, and some without, has that tumour."
    if left_out:
        text += f" Left out: {', '.join(left_out)}."
    return Section(_TITLES["subjects"], text, (Table(rows),) if len(rows) > 1 else ())


def _shortcuts(metrics: Scores, _: Card) -> Section:
    found = metrics["shortcuts"]
    style = found["style_only"]
    text = (
        "Archives differ in size, frame, grey values and compression, and these signs can give a "
        "class away. A model that reads the anatomy keeps its accuracy when they are changed or "
        "removed (blue), and falls to chance when the head is blacked out (orange)."
    )
    if style:
        text += (
            f" From the signs alone, a simple model without the anatomy gets "
            f"{percent(style['accuracy'])} right; the commonest class makes "
            f"{percent(style['chance'])}."
        )
    rows: list[list[Cell]] = [
        [f"{found['images']:,} images", "accuracy"],
        ["as they are", decimal(found["plain"])],
    ]
    rows += [
        [each["name"].replace("_", " "), (decimal(each["accuracy"]), between(each["interval"]))]
        for each in found["variants"]
    ]
    return Section(_TITLES["shortcuts"], text, (Table(rows),), ("shortcuts",))


def _robustness(metrics: Scores, _: Card) -> Section:
    found = metrics["robustness"]
    rows: list[list[Cell]] = [["severity", "1", "2", "3", "4", "5", "mean"]]
    for name, scores in found["corruptions"].items():
        cells = [decimal(score) for score in (*scores, float(np.mean(scores)))]
        rows.append([name.replace("_", " "), *cells])
    return Section(
        _TITLES["robustness"],
        "Accuracy under faults that scanners and archives put into slices, from barely visible "
        f"(1) to what a person can still read (5), on {found['images']:,} images; as they are, "
        f"it is {decimal(found['plain'])}.",
        (Table(rows),),
        ("robustness",),
    )


def _explanations(metrics: Scores, _: Card) -> Section:
    found = metrics["explanations"]
    deletion, pointing = found["deletion"], found["pointing"]
    text = f"{found['method']} marks what in a slice speaks for the answer."
    rows: list[list[Cell]] = [["", "measured", "by chance", "images"]]
    if deletion:
        areas = [decimal(deletion["auc"]), decimal(deletion["random_auc"])]
        rows.append(["deletion, lower is better", *areas, f"{deletion['images']:,}"])
        text += (
            " Deletion: as the marked parts are removed, the hottest first, the probability should "
            "fall sooner than at random."
        )
    if pointing:
        rates = [percent(pointing["hit_rate"]), percent(pointing["chance"])]
        rows.append(["pointing game, higher is better", *rates, f"{pointing['images']:,}"])
        text += " Pointing game: how often the hottest pixel lies in the tumour."
    return Section(
        _TITLES["explanations"], text, (Table(rows),) if len(rows) > 1 else (), ("deletion",)
    )


def _history(_: Scores, __: Card) -> Section:
    return Section(_TITLES["history"], "Of the run that trained the model.", figures=("learning",))


_TITLES: Final = {
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
"""Of sections, by the key of `metrics.json` with their numbers."""

_MAKERS: Final[dict[str, Callable[[Scores, Card], Section | None]]] = {
    "binary": _binary,
    "calibration": _calibration,
    "selective": _selective,
    "conformal": _conformal,
    "strange": _strange,
    "subgroups": _subgroups,
    "subjects": _subjects,
    "shortcuts": _shortcuts,
    "robustness": _robustness,
    "explanations": _explanations,
    "history": _history,
}
"""In the order of the page."""
