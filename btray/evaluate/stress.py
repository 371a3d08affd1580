"""A bundle under changed images: style taken away, faults put in, strangers, explanations."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import TaskPoolStrategy

from btray import cluster
from btray.core.bundle import Bundle
from btray.core.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from btray.core.explain import (
    chance_map,
    deletion_curve,
    explain,
    grad_cam,
    overlay,
    pointing_chance,
    pointing_hit,
    prepared_mask,
)
from btray.core.head import foreground
from btray.core.images import decode
from btray.core.intervals import ratio_intervals
from btray.core.metrics import Scores, auroc
from btray.core.preprocess import Pixels, to_square
from btray.core.strangers import strangers
from btray.core.unstyled import STYLES, border_removed, brain_masked, without_style
from btray.data.context import data_context
from btray.data.dataset import Dataset
from btray.evaluate.evaluate import BATCH, Evaluation, Progress, predictor_of

FAULTY: Final = 200
"""Images that faults are put into."""
EXPLAINED: Final = 32
"""Images whose explanations are put to the test."""
SHOWN: Final = 8
"""Images whose explanations are shown."""
_PORTION: Final = 8
"""Images of a task."""

_Change = Callable[[Pixels], Pixels]
PLAIN: Final = "plain"
SIGNS: Final[dict[str, _Change]] = {
    "without style": without_style,
    "border removed": border_removed,
    "brain masked": brain_masked,
    **STYLES,
}
"""Changes of style; 'brain masked' leaves nothing but style."""
FAULTS: Final[dict[str, _Change]] = {
    f"{name}/{severity}": partial(corrupt, name=name, severity=severity)
    for name in CORRUPTIONS
    for severity in SEVERITIES
}
_CHANGES: Final[dict[str, _Change]] = {PLAIN: lambda image: image, **SIGNS, **FAULTS}


def shortcuts(
    bundle: Bundle, dataset: Dataset, evaluation: Evaluation, progress: Progress | None = None
) -> Scores:
    """Score all rows with signs of style removed or changed, and with nothing but style left."""
    rows = np.arange(len(evaluation.labels))
    right = _right(bundle, dataset, evaluation, rows, [PLAIN, *SIGNS], progress)
    all_rows = np.ones_like(right)
    intervals = ratio_intervals(right, all_rows, evaluation.groups)
    return {
        "images": len(rows),
        "plain": float(right[:, 0].mean()),
        "variants": [
            {"name": name, "accuracy": float(hits.mean()), "interval": interval}
            for name, hits, interval in zip(SIGNS, right[:, 1:].T, intervals[1:], strict=True)
        ],
    }


def robustness(
    bundle: Bundle, dataset: Dataset, evaluation: Evaluation, progress: Progress | None = None
) -> Scores:
    """Score some rows with the faults of scanners and archives, at five severities each."""
    rows = choose(evaluation, FAULTY)
    right = _right(bundle, dataset, evaluation, rows, [PLAIN, *FAULTS], progress).mean(axis=0)
    by_fault = right[1:].reshape(len(CORRUPTIONS), len(SEVERITIES))
    return {
        "images": len(rows),
        "plain": float(right[0]),
        "corruptions": dict(zip(CORRUPTIONS, by_fault.tolist(), strict=True)),
    }


def strangers_told(bundle: Bundle, evaluation: Evaluation) -> list[Scores]:
    """Say how well the bundle tells kinds of images that are no brain MRI from the rows."""
    predictor = predictor_of(bundle)
    by_kind: dict[str, list[Pixels]] = {}
    for kind, _, image in strangers():
        by_kind.setdefault(kind, []).append(to_square(image, bundle.card.image))
    found = []
    for kind, squares in by_kind.items():
        scores = predictor.outputs(np.stack(squares)).strangeness
        both = np.concatenate([evaluation.strangeness, scores])
        strange = np.arange(len(both)) >= len(evaluation.strangeness)
        found.append(
            {
                "kind": kind,
                "images": len(squares),
                "auroc": auroc(strange, both),
                "flagged": float((scores > bundle.strange_above).mean()),
            }
        )
    return found


def explanations(bundle: Bundle, dataset: Dataset, evaluation: Evaluation) -> Scores:
    """Put Grad-CAM to the test: deletion, and pointing at tumours where masks of them exist."""
    predictor = predictor_of(bundle)
    rows = choose(evaluation, EXPLAINED)
    curves: dict[str, list[NDArray[np.float64]]] = {"map": [], "chance": []}
    hits, chances = [], []
    steps: list[float] = []
    for row, (data, mask) in zip(rows.tolist(), _stored(dataset, evaluation, rows), strict=True):
        image = decode(data)
        square = to_square(image, bundle.card.image)
        answer = evaluation.class_names[int(evaluation.probabilities[row].argmax())]
        heat = grad_cam(predictor, square, answer)
        for name, order in (("map", heat), ("chance", chance_map(len(square), row))):
            curve = deletion_curve(predictor, square, order, answer)
            curves[name].append(curve.probability)
            steps = curve.removed.tolist()
        if mask is not None:
            tumour = prepared_mask(decode(mask) > 0, image, bundle.card.image)
            chance = pointing_chance(tumour, foreground(square))
            if tumour.any() and chance is not None:
                hits.append(pointing_hit(heat, tumour))
                chances.append(chance)
    mean = {name: np.mean(found, axis=0) for name, found in curves.items()}
    return {
        "method": "Grad-CAM",
        "deletion": {
            "images": len(rows),
            "auc": float(np.trapezoid(mean["map"], steps)),
            "random_auc": float(np.trapezoid(mean["chance"], steps)),
            "steps": steps,
            "curve": mean["map"].tolist(),
            "random_curve": mean["chance"].tolist(),
        },
        "pointing": {
            "images": len(hits),
            "hit_rate": float(np.mean(hits)),
            "chance": float(np.mean(chances)),
        }
        if hits
        else None,
    }


def overlays(bundle: Bundle, dataset: Dataset, evaluation: Evaluation) -> list[tuple[str, bytes]]:
    """Return what each of some images is, and its Grad-CAM over it as a PNG."""
    predictor, rows, names = predictor_of(bundle), choose(evaluation, SHOWN), evaluation.class_names
    found = []
    for row, data in zip(rows.tolist(), _images(dataset, evaluation, rows), strict=True):
        explained = explain(predictor, data)
        title = f"is {names[evaluation.labels[row]]}, said {explained.class_name}"
        found.append((f"{title}, {explained.probability:.0%}", overlay(explained)))
    return found


def choose(evaluation: Evaluation, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Draw rows [count or fewer] of an evaluation, of every group one before any second."""
    order = np.random.default_rng(seed).permutation(len(evaluation.labels))
    turns = np.empty(len(order), dtype=np.int64)
    seen: dict[int, int] = {}
    for position, group in enumerate(evaluation.groups[order].tolist()):
        turns[position] = seen[group] = seen.get(group, -1) + 1
    return np.sort(order[np.argsort(turns, kind="stable")][:count])


def _right(
    bundle: Bundle,
    dataset: Dataset,
    evaluation: Evaluation,
    rows: NDArray[np.int64],
    names: Sequence[str],
    progress: Progress | None,
) -> NDArray[np.bool_]:
    """Return whether each row's answer is right after each change [rows, changes]."""
    found = []
    for table in _answered(bundle, _images(dataset, evaluation, rows), names):
        found.extend(table["predicted"].to_pylist())
        if progress is not None:
            progress(len(found), len(rows))
    return np.asarray(np.array(found) == evaluation.labels[rows][:, None])


def _answered(bundle: Bundle, images: list[bytes], names: Sequence[str]) -> Iterator[pa.Table]:
    cluster.connect()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    portions = [images[start : start + _PORTION] for start in range(0, len(images), _PORTION)]
    with data_context():
        tables = ray.data.from_arrow([pa.table({"image": some}) for some in portions])
        answers = tables.map_batches(
            answer_changed,  # type: ignore[arg-type]  # a batch is an Arrow table here
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"bundle": bundle, "names": list(names)},
            compute=TaskPoolStrategy(size=gpus or cluster.usable_cores()),
            num_gpus=1 if gpus else 0,
        )
        yield from answers.iter_batches(batch_size=None, batch_format="pyarrow")


def answer_changed(table: pa.Table, bundle: Bundle, names: list[str]) -> pa.Table:
    """Return the classes answered to each image after each change: `predicted`, a list a row."""
    predictor = predictor_of(bundle, threads=1)
    images = [decode(data) for data in table["image"].to_pylist()]
    squares = [
        to_square(_CHANGES[name](image), bundle.card.image) for image in images for name in names
    ]
    logits = np.concatenate(
        [
            predictor.logits(np.stack(squares[start : start + BATCH]))
            for start in range(0, len(squares), BATCH)
        ]
    )
    answers = logits.argmax(axis=1).reshape(len(images), len(names))
    return pa.table({"predicted": list(answers)})


def _images(dataset: Dataset, evaluation: Evaluation, rows: NDArray[np.int64]) -> list[bytes]:
    return [image for image, _ in _stored(dataset, evaluation, rows)]


def _stored(
    dataset: Dataset, evaluation: Evaluation, rows: NDArray[np.int64]
) -> list[tuple[bytes, bytes | None]]:
    """Return the encoded image, and the mask where there is one, of some rows."""
    names = [evaluation.sha256[row] for row in rows]
    images, masks = (dataset.images("sha256", names, column) for column in ("image", "mask"))
    return [(images[name], masks[name]) for name in names]
