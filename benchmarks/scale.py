"""A large synthetic data set, made and trained on for one streamed epoch.

Usage: python benchmarks/scale.py [--images 100000] [--size 96] [--work FOLDER] [--dataset FOLDER]

The phantom is generated, decoded, hashed, grouped, split and written as any import is; then
`btray train` (btray_cnn, two workers, one epoch) with `data.cache_limit` far below the decoded
size. Peak memory is the proportional set size of the command and of everything it started. Nothing
is kept. With `--dataset` one that was made before is trained on.
"""

import argparse
import json
import tempfile
from pathlib import Path

from measuring import btray, folder_bytes

from btray.data.dataset import Dataset


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--dataset", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work, figures = Path(temporary), {}
        if options.dataset is None:
            figures = make(work / "dataset", options.images)
        figures |= measure(work, options.dataset or work / "dataset", options.size)
    for key, value in figures.items():
        print(f"{key:32}{value:14,.1f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def make(path: Path, images: int) -> dict[str, float]:
    """Make the data set; return how long it took and how much memory."""
    made = btray("data", "phantom", path, "--images", images)
    return {
        "import_seconds": made.seconds,
        "import_images_per_second": images / made.seconds,
        "import_peak_mib": made.peak / 2**20,
    }


def measure(work: Path, path: Path, size: int) -> dict[str, float]:
    """Train an epoch, and return all figures of it."""
    dataset = Dataset.open(str(path))
    settings = {
        "data.dataset": path,
        "data.cache_limit": "16 MiB",
        "run.storage": work / "runs",
        "run.name": "scale",
        "image.size": size,
        "train.workers": 2,
        "train.epochs": 1,
        "train.warmup_epochs": 0,
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    trained = btray("train", *options)
    (epoch,) = json.loads((work / "runs" / "scale" / "history.json").read_text())
    rows = dataset.count("train") + dataset.count("validation")
    return {
        "images": dataset.manifest.rows,
        "size": size,
        "dataset_mib": folder_bytes(path) / 2**20,
        "decoded_cache_mib": rows * size**2 / 2**20,
        "first_step_seconds": trained.when("first step"),
        "train_seconds": trained.seconds,
        "train_images_per_second": epoch["images_per_second"],
        "train_peak_mib": trained.peak / 2**20,
        "validation_accuracy": epoch["val_accuracy"],
    }


if __name__ == "__main__":
    main()
