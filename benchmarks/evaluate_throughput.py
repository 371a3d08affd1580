"""Images a second of `btray evaluate` against bare inference with the same network and cores.

Usage: python benchmarks/evaluate_throughput.py [--images 1000] [--rounds 3] [BUNDLE]

bare      the bundle's network on prepared images that lie ready: a process of one thread a core,
          which keeps the memory it frees, as btray's do
evaluate  `evaluate_bundle` on a data set of so many slices: read, decoded, resized, answered, every
          row accounted for and scored; in a session whose first evaluation is not counted

Rounds of the two take turns; the median is told, and of the first evaluation its seconds.
"""

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from btray.cluster import connect, local_cores
from btray.core.allocator import keep_freed_memory
from btray.core.bundle import load_bundle
from btray.core.predictor import Predictor
from btray.core.reference import reference_bundle
from btray.data.dataset import Dataset
from btray.data.importer import ImportOptions, import_dataset
from btray.data.sources.phantom_source import PhantomSource
from btray.evaluate.evaluate import BATCH, evaluate_bundle

_predictor: Predictor


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default=None)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bundle = load_bundle(options.bundle or reference_bundle())
    connect()
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(Path(temporary) / "dataset")
        splits = {"validation": 0.01, "test": 0.98}
        import_dataset(PhantomSource(options.images), folder, ImportOptions(**splits))
        dataset = Dataset.open(folder)
        images, cores = dataset.count("test"), local_cores()
        rng = np.random.default_rng(0)
        side = bundle.card.image.size
        squares = rng.integers(0, 256, (BATCH, side, side), dtype=np.uint8)
        start = time.perf_counter()
        evaluate_bundle(bundle, dataset, "test")
        figures = {"images": float(images), "cores": float(cores)}
        figures["first_evaluation_seconds"] = time.perf_counter() - start
        rates: dict[str, list[float]] = {"bare": [], "evaluate": []}
        with ProcessPoolExecutor(
            cores, get_context("spawn"), initializer=load, initargs=(bundle.uri,)
        ) as pool:
            list(pool.map(answer, [squares] * cores))
            for _ in range(options.rounds):
                start = time.perf_counter()
                portions = [squares[: min(BATCH, images - at)] for at in range(0, images, BATCH)]
                list(pool.map(answer, portions))
                rates["bare"].append(images / (time.perf_counter() - start))
                start = time.perf_counter()
                evaluate_bundle(bundle, dataset, "test")
                rates["evaluate"].append(images / (time.perf_counter() - start))
    figures |= {f"{name}_images_per_second": statistics.median(r) for name, r in rates.items()}
    ratios = [e / b for e, b in zip(rates["evaluate"], rates["bare"], strict=True)]
    figures["evaluate_vs_bare"] = statistics.median(ratios)
    for key, value in figures.items():
        print(f"{key:32}{value:12,.3f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def load(uri: str) -> None:
    """Start a process of bare inference."""
    global _predictor
    torch.set_num_threads(1)
    keep_freed_memory()
    _predictor = Predictor(load_bundle(uri))


def answer(squares: np.ndarray) -> int:
    """Answer prepared images."""
    return len(_predictor.logits(squares))


if __name__ == "__main__":
    main()
