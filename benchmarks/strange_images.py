"""Does a bundle say of images that are no brain MRI slice that they are none?

Usage: python benchmarks/strange_images.py [BUNDLE] DATASET [--split test] [--seed 0]

BUNDLE is the shipped reference by default. Photographs, other anatomy, text and noise
(btray.core.strangers) are told from the slices of the split by their score of strangeness, that of
the bundle's detector; without one, one is fitted to validation, and for an ensemble it is the
energy of the logits. The threshold is the bundle's too: nothing is fitted on what is scored.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from btray.core.answers import Outputs
from btray.core.bundle import Bundle, load_bundle
from btray.core.fitting import group_numbers
from btray.core.predictor import Predictor
from btray.core.preprocess import to_square
from btray.core.reference import reference_bundle
from btray.core.strange import fit_detector
from btray.core.strangers import strangers
from btray.data.dataset import Dataset

BATCH = 32
Squares = NDArray[np.uint8]


def main() -> None:
    """Score the split and the strangers; print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default=None)
    parser.add_argument("dataset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bundle = load_bundle(options.bundle or reference_bundle())
    dataset = Dataset.open(options.dataset)
    stored = bundle.detector is not None
    if not stored:
        bundle = with_detector(bundle, dataset)
    predictor, detector = Predictor(bundle), bundle.detector
    known = strangeness(predictor, slices(predictor, dataset, options.split))
    figures: dict[str, object] = {
        "bundle": bundle.version,
        "detector": "none: energy of the logits" if detector is None else detector.method,
        "detector_from": "bundle" if stored else "validation",
        f"{options.split}_images": len(known),
        f"{options.split}_flagged": share(known > bundle.strange_above),
    }
    print(f"{'':14}{'images':>8}{'AUROC':>9}{'called strange':>17}")
    print(f"{options.split:14}{len(known):>8}{'':9}{(known > bundle.strange_above).mean():>17.1%}")
    by_kind: dict[str, list[Squares]] = defaultdict(list)
    for kind, _, pixels in strangers(options.seed):
        by_kind[kind].append(to_square(pixels, bundle.card.image))
    for kind, squares in by_kind.items():
        scores = strangeness(predictor, squares)
        truth = np.repeat([0, 1], [len(known), len(scores)])
        area = float(roc_auc_score(truth, np.concatenate([known, scores])))
        flagged = scores > bundle.strange_above
        figures |= {
            f"{kind}_images": len(scores),
            f"{kind}_auroc": round(area, 4),
            f"{kind}_flagged": share(flagged),
        }
        print(f"{kind:14}{len(scores):>8}{area:>9.4f}{flagged.mean():>17.1%}")
    print(json.dumps(figures))


def with_detector(bundle: Bundle, dataset: Dataset) -> Bundle:
    """Fit a detector to the features of the data set's validation split, if there are any."""
    predictor = Predictor(bundle)
    found = [part.features for part in outputs(predictor, slices(predictor, dataset, "validation"))]
    features = [part for part in found if part is not None]
    if not features:
        return bundle
    groups = group_numbers(dataset.table(["group_id"], "validation")["group_id"].to_pylist())
    return replace(bundle, detector=fit_detector(np.concatenate(features), groups))


def slices(predictor: Predictor, dataset: Dataset, split: str) -> list[Squares]:
    """Return the prepared slices of a split, in stored order."""
    return [
        predictor.prepare(data) for data in dataset.table(["image"], split)["image"].to_pylist()
    ]


def strangeness(predictor: Predictor, squares: Sequence[Squares]) -> NDArray[np.float64]:
    """Return how strange images are; higher is stranger."""
    return np.concatenate([part.strangeness for part in outputs(predictor, squares)])


def outputs(predictor: Predictor, squares: Sequence[Squares]) -> Iterator[Outputs]:
    """Yield what the network says of batches of images."""
    for start in range(0, len(squares), BATCH):
        yield predictor.outputs(np.stack(squares[start : start + BATCH]))


def share(chosen: NDArray[np.bool_]) -> float:
    """Return the share of what is true."""
    return round(float(chosen.mean()), 4)


if __name__ == "__main__":
    main()
