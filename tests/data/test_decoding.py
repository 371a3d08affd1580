"""Where decoding runs, and what comes out of it."""

import numpy as np
import ray

from btray.config import ImageConfig
from btray.core.prepare import prepare
from btray.data.dataset import Dataset
from btray.data.decoding import decode_rows, pixels

SIZE = 32


def test_rows_are_decoded_by_the_function_that_prepares_served_images(cluster, phantom):
    dataset = Dataset.open(str(phantom))
    image = ImageConfig(size=SIZE)
    tables = ray.get(decode_rows(dataset, ("train", "test"), image))
    stored = dataset.table(["image", "label", "split"]).to_pylist()
    wanted = [row for row in stored if row["split"] in ("train", "test")]
    squares = np.concatenate([pixels(t["square"].combine_chunks(), SIZE) for t in tables])
    assert [label for t in tables for label in t["label"].to_pylist()] == [
        row["label"] for row in wanted
    ]
    for square, row in zip(squares, wanted, strict=True):
        assert np.array_equal(square, prepare(row["image"], image))
