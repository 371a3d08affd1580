"""All that is said of an evaluation: every score with its interval, and what it is worth."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from btray.core import files
from btray.core.binary import has_tumour, read_out, tumour_score
from btray.core.bundle import Bundle
from btray.core.intervals import curve_bands, score_intervals
from btray.core.layout import FOLDER
from btray.core.metrics import Scores, precision_recall_points
from btray.core.reliability import before_and_after
from btray.core.selective import conformal, selective
from btray.core.subgroups import columns_of, subgroups
from btray.core.subjects import by_subject
from btray.evaluate.evaluate import Evaluation


def assessed(
    evaluation: Evaluation, bundle: Bundle, more: Mapping[str, Any] | None = None, seed: int = 0
) -> Evaluation:
    """Return an evaluation with all that `metrics.json` holds.

    `more` are the parts that take more than the answers to the rows: `leakage`, `shortcuts`,
    `robustness`, `explanations`, and the `kinds` of strange images.
    """
    parts = dict(more or {})
    kinds = parts.pop("kinds", None)
    metrics = {**assess(evaluation, bundle, seed), **dict.fromkeys(_MORE), **parts}
    metrics["strange"]["kinds"] = kinds
    why = "not asked for; `btray evaluate --full` has it"
    metrics["not_run"] = {name: why for name in _MORE[1:] if metrics[name] is None}
    if kinds is None:
        metrics["not_run"]["kinds"] = why
    history = _history(bundle)
    return replace(
        evaluation, metrics=metrics if history is None else {**metrics, "history": history}
    )


_MORE: Final = ("leakage", "shortcuts", "robustness", "explanations")


def _history(bundle: Bundle) -> list[dict[str, float]] | None:
    """Return the epochs of the run that a bundle still lies in."""
    run, name = files.split(bundle.uri)
    if name != FOLDER:
        return None
    try:
        return list(json.loads(files.read(files.join(run, "history.json"))))
    except FileNotFoundError:
        return None


def assess(evaluation: Evaluation, bundle: Bundle, seed: int = 0) -> Scores:
    """Return the scores of the rows, and all that follows from them.

    Thresholds and temperatures are the bundle's, fitted on validation; nothing is fitted on
    these rows. Intervals are at 95 %, by resampling whole groups. A part that cannot be had is
    None.
    """
    labels, probabilities = evaluation.labels, evaluation.probabilities
    names, groups = evaluation.class_names, evaluation.groups
    fitted = bundle.card.calibration
    return {
        **evaluation.metrics,
        "precision_recall": precision_recall_points(labels, probabilities, names),
        "groups": len(np.unique(groups)),
        "intervals": score_intervals(labels, probabilities, names, groups, seed=seed),
        "bands": curve_bands(labels, probabilities, names, groups, seed=seed),
        "binary": _binary(evaluation, bundle, seed),
        "calibration": before_and_after(labels, evaluation.logits, fitted),
        "selective": selective(labels, probabilities, fitted, groups),
        "conformal": conformal(labels, probabilities, fitted, groups),
        "strange": {
            "method": "energy" if bundle.detector is None else bundle.detector.method,
            "threshold": bundle.strange_above,
            "flagged": float((evaluation.strangeness > bundle.strange_above).mean()),
            "kinds": None,
        },
        "subgroups": subgroups(
            labels, probabilities, columns_of(evaluation.about, names), groups, names, seed=seed
        ),
        "subjects": by_subject(evaluation.logits, labels, evaluation.about, names, fitted),
    }


def _binary(evaluation: Evaluation, bundle: Bundle, seed: int) -> dict[str, Any] | None:
    names, point = evaluation.class_names, bundle.card.calibration.tumour_threshold
    scores = tumour_score(evaluation.probabilities, names)
    tumour = has_tumour(evaluation.labels, names)
    if point is None or scores is None or tumour is None:
        return None
    return read_out(tumour, scores, point, evaluation.groups, seed=seed)
