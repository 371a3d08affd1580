"""New bundles from trained ones: ensembles, and half precision; measured and calibrated anew."""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from btray.config import ImageConfig, ModelConfig
from btray.core.bundle import Bundle, joined, save_bundle
from btray.core.card import FORMAT_VERSION, Card, Member, Provenance
from btray.core.fitting import HeldOut, fit, group_numbers
from btray.core.metrics import evaluate_probabilities
from btray.data.dataset import Dataset
from btray.data.seen import seen_in
from btray.errors import UserError
from btray.evaluate.evaluate import Progress, evaluate_bundle
from btray.version import __version__


def make_ensemble(
    bundles: Sequence[Bundle],
    votes: Sequence[float],
    dataset: Dataset,
    directory: Path,
    progress: Progress | None = None,
) -> Bundle:
    """Write several bundles as one that answers with the mean of their probabilities.

    `votes` are the weights of their answers, in any scale; none for equal ones. It is measured
    and calibrated on the rows that were held out: see `held_out_answers`.

    Raises:
        UserError: fewer than two, the same twice, or an ensemble among them; other classes,
            image settings or data; votes that are no weights; or `directory` is in use.

    """
    _check_alike(bundles, dataset)
    shares = _shares(votes, len(bundles))
    first = bundles[0].card
    # No network is called so: whatever needs one architecture says that this has several.
    card = first.model_copy(
        update={
            "format_version": FORMAT_VERSION,
            "name": "ensemble",
            "model": ModelConfig(name="ensemble", dropout=0),
            "provenance": _provenance([bundle.card.provenance for bundle in bundles]),
            "members": tuple(map(_member, bundles, shares)),
            "precision": "float32",
        }
    )
    return write_measured(
        joined([bundle.weights for bundle in bundles]), card, dataset, directory, progress
    )


def halve(
    bundle: Bundle, dataset: Dataset, directory: Path, progress: Progress | None = None
) -> Bundle:
    """Write a bundle in half precision, measured and calibrated with its rounded weights.

    Raises:
        UserError: weights beyond float16, another data set, or `directory` is in use.

    """
    card = bundle.card.model_copy(update={"format_version": FORMAT_VERSION, "precision": "float16"})
    return write_measured(bundle.weights, card, dataset, directory, progress)


def write_measured(
    weights: dict[str, Any],
    card: Card,
    dataset: Dataset,
    directory: Path,
    progress: Progress | None = None,
) -> Bundle:
    """Write a bundle whose scores and calibration are those of its weights as stored.

    Raises:
        UserError: not the data set it was trained on, or `directory` is in use.

    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: not empty; choose another folder")
    with tempfile.TemporaryDirectory() as temporary:
        draft = save_bundle(Path(temporary) / "draft", weights, card)
        answers = held_out_answers(draft, dataset, progress)
    calibration, detector = fit(answers, card.class_names)
    scores = validation_scores(answers.labels, answers.logits, card.class_names)
    card = card.model_copy(update={"metrics": scores, "calibration": calibration})
    return save_bundle(directory, weights, card, detector, seen_in(dataset))


def held_out_answers(bundle: Bundle, dataset: Dataset, progress: Progress | None = None) -> HeldOut:
    """Return what the networks answer to rows they never learned.

    These are the rows of validation. Of an ensemble over folds they are all rows outside test,
    each answered only by the members whose fold it is in: fewer than the whole ensemble, so
    that its calibration errs to the side of caution (as cross-conformal prediction, Vovk 2015).

    Raises:
        UserError: not the data set it was trained on.

    """
    provenance, manifest = bundle.card.provenance, dataset.manifest
    if provenance.data_hash != manifest.content_hash:
        raise UserError(
            f"{dataset.uri}: not the data set {bundle.card.name} was trained on, so what it "
            "has not seen is not known; give that data set"
        )
    folds = bundle.card.folds
    parts = [bundle]
    if len(folds) > 1:
        numbers = range(len(bundle.card.members))
        parts = [
            bundle.with_members([n for n in numbers if bundle.card.members[n].fold == fold])
            for fold in folds
        ]
    answers = [evaluate_bundle(part, dataset, "validation", progress, True) for part in parts]
    features = [answer.features for answer in answers if answer.features is not None]
    return HeldOut(
        labels=np.concatenate([answer.labels for answer in answers]),
        logits=np.concatenate([answer.logits for answer in answers]),
        groups=group_numbers([name for answer in answers for name in answer.about["group_id"]]),
        features=features[0] if len(answers) == len(features) == 1 else None,
    )


def validation_scores(
    labels: NDArray[np.int64], logits: NDArray[np.float32], class_names: Sequence[str]
) -> dict[str, float]:
    """Return loss, accuracy, macro-F1 and macro AUROC, keys `val_…`; the last if defined."""
    logs = log_softmax(logits.astype(np.float64), axis=1)
    scores = evaluate_probabilities(labels, np.exp(logs), class_names)
    found = {
        "val_loss": -logs[np.arange(len(labels)), labels].mean(),
        "val_accuracy": scores["accuracy"],
        "val_macro_f1": scores["macro_f1"],
        "val_macro_auroc": scores["macro_auroc"],
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _check_alike(bundles: Sequence[Bundle], dataset: Dataset) -> None:
    if len(bundles) < 2:
        raise UserError("an ensemble needs two bundles or more")
    first = bundles[0]
    seen: set[str] = set()
    for bundle in bundles:
        if bundle.card.members:
            raise UserError(f"{bundle.uri}: an ensemble itself; give its members' bundles")
        if bundle.version in seen:
            raise UserError(f"{bundle.uri}: a network that is in the ensemble already")
        seen.add(bundle.version)
        if bundle.card.class_names != first.card.class_names:
            raise UserError(f"{bundle.uri}: knows other classes than {first.uri}")
        for name in ImageConfig.model_fields:
            mine, theirs = getattr(bundle.card.image, name), getattr(first.card.image, name)
            if mine != theirs:
                raise UserError(
                    f"{bundle.uri}: sees images with image.{name}={mine}, {first.uri} with "
                    f"{theirs}; an ensemble needs one preparation"
                )
        _check_data(bundle, first, dataset)


def _check_data(bundle: Bundle, first: Bundle, dataset: Dataset) -> None:
    """Refuse members of which one was trained on what is test or held out for another."""
    mine, split = bundle.card.provenance, dataset.manifest.split
    if mine.data_hash != dataset.manifest.content_hash:
        raise UserError(
            f"{bundle.uri}: not trained on {dataset.uri} with its splits: it may have learned "
            "what is test for the others; train it on this data set"
        )
    folds, others = bundle.card.folds[0], first.card.folds[0]
    if (folds is None) != (others is None):
        raise UserError(
            f"{bundle.uri}: of two bundles of an ensemble, one is of a fold and one is not; they "
            "held out other rows"
        )
    if folds is not None and mine.assignment_hash != split.assignment_hash:
        raise UserError(f"{bundle.uri}: not trained on the folds {dataset.uri} has now")


def _shares(votes: Sequence[float], count: int) -> list[float]:
    if not votes:
        return [1 / count] * count
    if len(votes) != count:
        raise UserError(f"{len(votes)} weights for {count} bundles; give one for each")
    if not all(0 < vote < float("inf") for vote in votes):
        raise UserError("weights must be above 0")
    return [vote / sum(votes) for vote in votes]


def _member(bundle: Bundle, weight: float) -> Member:
    card = bundle.card
    return Member(
        name=card.name,
        version=bundle.version,
        weight=weight,
        fold=card.folds[0],
        model=card.model,
        metrics=card.metrics,
        run=card.provenance.run,
        epoch=card.provenance.epoch,
        seed=card.provenance.seed,
    )


def _provenance(members: Sequence[Provenance]) -> Provenance:
    """Return the first member's; what the members differ in is told of each of them."""
    return members[0].model_copy(
        update={
            "btray_version": __version__,
            "code_version": _common([member.code_version for member in members]),
            "initial_weights": _common([member.initial_weights for member in members]),
            "run": None,
            "refit": any(member.refit for member in members),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _common(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None
