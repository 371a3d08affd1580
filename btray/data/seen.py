"""The hashes of a data set's images that its bundles keep."""

from itertools import compress

from btray.core.seen import Seen
from btray.data.dataset import Dataset

LEARNED = ("train", "validation")
"""Splits that a network learns from or is chosen on."""


def seen_in(dataset: Dataset) -> Seen:
    """Return the hashes of the images that a network of this data set learned or was chosen on."""
    rows = dataset.table(["split", "pixel_sha256", "phash"]).to_pydict()
    used = [split in LEARNED for split in rows["split"]]
    return Seen.of(list(compress(rows["pixel_sha256"], used)), list(compress(rows["phash"], used)))
