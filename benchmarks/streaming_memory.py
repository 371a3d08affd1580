"""Peak memory of training on a data set and on one ten times as large, streamed and not.

Usage: python benchmarks/streaming_memory.py [--images 4000] [--size 160] [--seconds 30]

`btray train` (btray_cnn, two workers) until SECONDS after its first step: by then every row is
decoded and the workers have what they need. Memory is the proportional set size of the command and
of everything it started, Ray and its object store included, so that shared pages count once. The
larger data set is the smaller one's Parquet files ten times over. `streamed` sets
`data.cache_limit` far below even the small set's decoded size, `memory` far above the large one's.
"""

import argparse
import json
import tempfile
from pathlib import Path

from measuring import Watched, btray, replicate

COPIES = 10


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        btray("data", "phantom", work / "dataset", "--images", options.images)
        for copies in (1, COPIES):
            if copies > 1:
                replicate(work / "dataset", copies)
            for mode, limit in (("streamed", "16 MiB"), ("memory", "100 GiB")):
                done = train(work, f"{mode}-{copies}", limit, options.size, options.seconds)
                figures[f"{mode}_{copies}x_mib"] = done.peak / 2**20
                figures[f"{mode}_{copies}x_first_step_seconds"] = done.when("first step")
                print(f"{mode:10}{copies:>3}x {done.peak / 2**20:8.0f} MiB", flush=True)
    for mode in ("streamed", "memory"):
        ratio = figures[f"{mode}_{COPIES}x_mib"] / figures[f"{mode}_1x_mib"]
        figures[f"{mode}_{COPIES}x_vs_1x"] = ratio
        print(f"{mode:10}{COPIES}x / 1x {ratio:.3f}")
    decoded = 0.85 * options.images * options.size**2 / 2**20
    figures |= {"images": options.images, "size": options.size, "decoded_1x_mib": decoded}
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def train(work: Path, name: str, limit: str, size: int, seconds: float) -> Watched:
    """Train until some seconds after the first step."""
    settings = {
        "data.dataset": work / "dataset",
        "data.cache_limit": limit,
        "run.storage": work / "runs",
        "run.name": name,
        "image.size": size,
        "train.workers": 2,
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return btray("train", *options, until=lambda done: warm(done, seconds))


def warm(done: Watched, seconds: float) -> bool:
    """Say whether the first step was so long ago."""
    first = [at for at, line in done.lines if line.startswith("first step")]
    return bool(first) and done.seconds > first[0] + seconds


if __name__ == "__main__":
    main()
