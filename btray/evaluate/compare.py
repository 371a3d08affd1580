"""Two models on the same rows: which is better, by how much, and where they differ."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from btray.core.bootstrap import mcnemar, paired_bootstrap
from btray.core.intervals import score_intervals
from btray.core.metrics import evaluate_probabilities
from btray.data.dataset import Dataset
from btray.errors import UserError
from btray.evaluate.evaluate import Evaluation
from btray.evaluate.figures import draw_comparison, draw_images, encode
from btray.evaluate.report import inflated, page, to_json, write_files
from btray.evaluate.sections import Cell, Section, Table, between, decimal, near, percent

DIFFERING: Final = 16
"""Most rows shown that the models answer differently."""
SCORES: Final = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "mcc": "Matthews correlation",
    "macro_auroc": "macro AUROC",
}
"""Scores that are set side by side, and what they are called."""


def compare(first: Evaluation, second: Evaluation, seed: int = 0) -> dict[str, Any]:
    """Return how two models' answers to the same rows differ.

    Rows are matched by hash and classes by name, in whichever order either has them.

    Returns:
        What `compare.json` holds: `split`, `rows`, `groups` and `class_names`; `models`, for each
        its `name`, `version`, `dataset`, and `SCORES` with `intervals` of them at 95 %;
        `differences` of `accuracy` and `macro_f1`, the second's less the first's: `value`, and
        `interval` [low, high] at 95 %, by resampling groups; `mcnemar`:
        `first_only`, `second_only` and `p_value`; `agreement`: how many rows `both_right`,
        `first_only` and `second_only` are right on, and `both_wrong`; and `recall`, by class
        that of either model, None where there are no rows.

    Raises:
        UserError: other rows, other labels of them, other classes, or rows of one group only.

    """
    labels, (one, two) = _matched(first, second)
    names, groups = first.class_names, first.groups
    said, also_said = one.argmax(axis=1), two.argmax(axis=1)
    scores = [evaluate_probabilities(labels, own, names) for own in (one, two)]
    count = len(np.unique(groups))
    if count < 2:
        raise UserError(
            f"{len(labels)} images of {first.split} are all of one group: how far a difference is "
            "noise cannot be told; compare on images of several patients"
        )
    drawn = paired_bootstrap(labels, said, also_said, len(names), groups, seed=seed)
    test = mcnemar(labels, said, also_said)
    both_wrong = int(((said != labels) & (also_said != labels)).sum())
    return {
        "split": first.split,
        "rows": len(labels),
        "groups": count,
        "class_names": list(names),
        "models": [
            {
                **evaluation.metrics["model"],
                "dataset": evaluation.metrics["dataset"],
                **{name: own[name] for name in SCORES},
                "intervals": _intervals(labels, probabilities, names, groups, seed),
            }
            for evaluation, probabilities, own in zip(
                (first, second), (one, two), scores, strict=True
            )
        ],
        "differences": {
            name: {"value": found.value, "interval": [found.low, found.high]}
            for name, found in drawn.items()
        },
        "mcnemar": asdict(test),
        "agreement": {
            "both_right": len(labels) - test.first_only - test.second_only - both_wrong,
            "first_only": test.first_only,
            "second_only": test.second_only,
            "both_wrong": both_wrong,
        },
        "recall": {
            name: [own["per_class"][name]["recall"] for own in scores]
            if (labels == position).any()
            else [None, None]
            for position, name in enumerate(names)
        },
    }


def write_comparison(
    result: dict[str, Any],
    first: Evaluation,
    second: Evaluation,
    dataset: Dataset,
    directory: Path,
) -> list[str]:
    """Write `compare.json`, `compare.html` and its pictures into a folder; return their names.

    Raises:
        UserError: the folder cannot be written.

    """
    encoded = encode(draw_comparison(result))
    pictures = {f"comparison.{kind}": data for kind, data in encoded.items()}
    differing = draw_differing(first, second, dataset)
    if differing is not None:
        pictures["differing.png"] = differing
    names = [model["name"] for model in result["models"]]
    files = {
        "compare.json": to_json(result),
        "compare.html": page(
            f"{names[0]} and {names[1]} on the {result['split']} split",
            _headline(result),
            _sections(result),
            _facts(result),
            pictures,
            _warning(first, second),
        ),
        **pictures,
    }
    write_files(files, directory)
    return list(files)


def draw_differing(first: Evaluation, second: Evaluation, dataset: Dataset) -> bytes | None:
    """Draw the rows of different answers as a PNG, the farthest apart first; None without any.

    The distance is the total variation between the probabilities. Raises as `compare`.
    """
    labels, (one, two) = _matched(first, second)
    names, tiles = first.class_names, []
    for row in most_different(one, two).tolist():
        lines = [f"is {names[labels[row]]}"]
        for which, own in (("first", one[row]), ("second", two[row])):
            lines.append(f"{which}: {names[own.argmax()]}, {own.max():.0%}")
        tiles.append(("\n".join(lines), first.sha256[row]))
    return draw_images(tiles, dataset) if tiles else None


def most_different(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return up to DIFFERING rows whose most probable class differs, the farthest apart first."""
    rows = np.flatnonzero(first.argmax(axis=1) != second.argmax(axis=1))
    distance = np.abs(first[rows] - second[rows]).sum(axis=1)
    return rows[np.argsort(-distance, kind="stable")][:DIFFERING]


def _matched(
    first: Evaluation, second: Evaluation
) -> tuple[NDArray[np.int64], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return labels [rows] and both models' probabilities [rows, classes], as the first has them.

    Raises:
        UserError: see `compare`.

    """
    if set(first.class_names) != set(second.class_names):
        raise UserError(
            f"{_name(first)} knows {', '.join(first.class_names)}, and {_name(second)} "
            f"{', '.join(second.class_names)}: compare models of the same classes"
        )
    mine, theirs = _order(first), _order(second)
    if sorted(first.sha256) != sorted(second.sha256):
        shared = len(set(first.sha256) & set(second.sha256))
        raise UserError(
            f"{_name(first)} was evaluated on {len(mine)} images and {_name(second)} on "
            f"{len(theirs)}, of which they share {shared}: evaluate both on the same split of "
            "the same data set"
        )
    order = np.empty(len(mine), dtype=np.int64)
    order[mine] = theirs
    columns = [second.class_names.index(name) for name in first.class_names]
    if (np.asarray(columns)[first.labels] != second.labels[order]).any():
        raise UserError(
            f"{_name(first)} and {_name(second)} were evaluated on images of other labels: "
            "evaluate both on the same data set"
        )
    return first.labels, (first.probabilities, second.probabilities[order][:, columns])


def _order(evaluation: Evaluation) -> list[int]:
    """Return the rows by hash, and by label where one image stands there twice."""
    names, labels = evaluation.class_names, evaluation.labels
    return sorted(range(len(labels)), key=lambda row: (evaluation.sha256[row], names[labels[row]]))


def _name(evaluation: Evaluation) -> str:
    model = evaluation.metrics["model"]
    return f"{model['name']} {model['version']}"


def _intervals(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    class_names: Sequence[str],
    groups: NDArray[np.int64],
    seed: int,
) -> dict[str, list[float] | None]:
    found = score_intervals(labels, probabilities, class_names, groups, seed=seed)
    return {name: found[name] for name in SCORES}


def _headline(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    cards = [
        (f"{m['accuracy']:.2%}", f"accuracy, {which}", near(m["intervals"]["accuracy"], percent))
        for which, m in zip(_WHICH, result["models"], strict=True)
    ]
    for name, found in result["differences"].items():
        ends = near(found["interval"], "{:+.4f}".format)
        cards.append((f"{found['value']:+.4f}", f"{SCORES[name]}, difference", ends))
    return [*cards, (f"{result['rows']:,}", "images", f"{result['groups']:,} groups")]


_WHICH: Final = ("the first", "the second")


def _sections(result: dict[str, Any]) -> list[Section]:
    one, two = result["models"]
    titles = [f"{which}: {model['name']}" for which, model in zip(_WHICH, (one, two), strict=True)]
    rows: list[list[Cell]] = [["", *titles]]
    rows += [
        [title, *((decimal(m[k]), between(m["intervals"][k])) for m in (one, two))]
        for k, title in SCORES.items()
    ]
    recalls: list[list[Cell]] = [["recall", *titles]]
    recalls += [[name, *map(decimal, pair)] for name, pair in result["recall"].items()]
    found, test = result["agreement"], result["mcnemar"]
    agreement: list[list[Cell]] = [
        ["", "the second right", "the second wrong"],
        ["the first right", f"{found['both_right']:,}", f"{found['first_only']:,}"],
        ["the first wrong", f"{found['second_only']:,}", f"{found['both_wrong']:,}"],
    ]
    return [
        Section(
            "Scores",
            f"{verdict(result)} Intervals are at 95%, from resamples of whole groups (patients, "
            "or near duplicates); that of a difference is of both models on the same resamples, "
            "and may exclude 0 where the intervals of the models overlap.",
            (Table(rows), Table(recalls)),
            ("comparison",),
        ),
        Section(
            "Agreement",
            "If both were right equally often, counts as uneven as these, or more so, of images "
            f"that only one is right on would come with a probability of {test['p_value']:.3g} "
            "(exact McNemar test). It takes the images for independent: where several are of one "
            "patient, go by the interval of the difference.",
            (Table(agreement),),
        ),
        Section(
            "Where they differ",
            "Images with different answers, those with the most different probabilities first.",
            figures=("differing",),
        ),
    ]


def verdict(result: dict[str, Any]) -> str:
    """Say in a sentence which model is more accurate, as far as that can be told."""
    found = result["differences"]["accuracy"]
    low, high = found["interval"]
    if low <= 0 <= high:
        return "The difference in accuracy is within noise: neither is shown to be better."
    better = _WHICH[found["value"] > 0].capitalize()
    return f"{better} is more accurate, by more than noise."


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("split", f"{result['split']}, {result['rows']} images, {result['groups']} groups")]
    for which, model in zip(_WHICH, result["models"], strict=True):
        known = "" if model["dataset"]["same_as_trained_on"] else "not "
        facts.append(
            (
                which,
                f"{model['name']}, version {model['version']}; {known}trained on this data set",
            )
        )
    return facts


def _warning(first: Evaluation, second: Evaluation) -> str | None:
    found = [
        f"{which.capitalize()}: {text}"
        for which, own in zip(_WHICH, (first, second), strict=True)
        if (text := inflated(own.metrics))
    ]
    return " ".join(found) or None
