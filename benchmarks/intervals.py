"""95 % intervals of the scores in a folder of `btray evaluate`, by resampling whole groups.

Usage: python benchmarks/intervals.py REPORT [--resamples 2000]

Prints one line a score (see btray/core/intervals.py), then JSON: [value, low, high] of each.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from btray.core.intervals import score_intervals
from btray.core.metrics import evaluate_probabilities, flat_scores


def main() -> None:
    """Print value, lower and upper end of every score, macro and of each class."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args()
    metrics = json.loads((options.report / "metrics.json").read_text())
    names = metrics["confusion_matrix"]["class_names"]
    rows = pq.read_table(options.report / "predictions.parquet")
    labels = np.array([names.index(label) for label in rows["label"].to_pylist()])
    probabilities = np.column_stack([rows[f"p_{name}"].to_numpy() for name in names])
    groups = np.array(rows["group"].to_pylist())
    intervals = score_intervals(labels, probabilities, names, groups, options.resamples)
    figures = {}
    for path, value in flat_scores(evaluate_probabilities(labels, probabilities, names)).items():
        low, high = intervals[path] or (None, None)
        figures[path] = [None if x is None else round(x, 4) for x in (value, low, high)]
        text = ["undefined" if x is None else f"{x:.4f}" for x in figures[path]]
        print(f"{path:40}{text[0]:>9}   {text[1]} to {text[2]}")
    print(json.dumps({**figures, "rows": len(labels), "groups": len(np.unique(groups))}))


if __name__ == "__main__":
    main()
