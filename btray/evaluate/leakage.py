"""Whether a split holds images that the bundle was trained or chosen on."""

from typing import Final

import numpy as np
import pyarrow as pa
import ray
from ray.data import TaskPoolStrategy
from ray.data.expressions import col

from btray import cluster
from btray.core.bundle import Bundle
from btray.core.images import ImageError, decode
from btray.core.metrics import Scores
from btray.core.seen import Seen, Twins, phash_variants
from btray.data.dataset import ROWS, Dataset
from btray.data.decoding import readable, tasks
from btray.errors import UserError

_NAMED: Final = 50
"""Most twins that are told by name."""


def check_leakage(
    bundle: Bundle, dataset: Dataset, split: str, allow: bool = False
) -> Scores | None:
    """Look for the split's images among those the bundle was trained and chosen on.

    Of the very data set it was trained on only identical pixels are looked for: its groups of near
    duplicates, found with the pixels at hand, stand in one split each. None for a bundle that
    keeps no hashes, and for a split it was trained or chosen on by definition.

    Raises:
        UserError: there are such images, and `allow` is False.

    """
    own = bundle.card.provenance.data_hash == dataset.manifest.content_hash
    if bundle.seen is None or (own and split != "test"):
        return None
    cluster.connect()
    names: list[str] = []
    exact: list[bool] = []
    near: list[bool] = []
    with readable(dataset):
        for table in _hashed(dataset, split):
            names += table["sha256"].to_pylist()
            found = _twins(bundle.seen, table)
            exact += found.exact.tolist()
            near += ([False] * len(found.near)) if own else found.near.tolist()
    twins = [name for name, *known in zip(names, exact, near, strict=True) if any(known)]
    if twins and not allow:
        raise UserError(
            f"{dataset.uri}: {len(twins)} of {len(names)} images of {split} have a twin in what "
            f"{bundle.card.name} {bundle.version} learned from (sha256 {twins[0][:12]} …): its "
            "scores would be too good; take them out, or see them marked with --allow-leak"
        )
    return {
        "rows": len(names),
        "exact": sum(exact),
        "near": sum(alike and not same for alike, same in zip(near, exact, strict=True)),
        "near_checked": not own,
        "twins": twins[:_NAMED],
        "allowed": allow,
    }


def _hashed(dataset: Dataset, split: str) -> "list[pa.Table]":
    cores = min(cluster.usable_cores(), tasks(dataset))
    rows = ray.data.read_parquet(
        f"{dataset.path}/{ROWS}", filesystem=dataset.filesystem, concurrency=cores
    )
    wanted = rows.filter(expr=col("split") == split).select_columns(
        ["sha256", "pixel_sha256", "image"]
    )
    hashed = wanted.map_batches(
        hash_images,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=cores),
    )
    return list(hashed.iter_batches(batch_size=None, batch_format="pyarrow"))


def hash_images(table: pa.Table) -> pa.Table:
    """Return `sha256`, `pixel_sha256` and `variants` [8] of a table of encoded images.

    Raises:
        UserError: a row that cannot be decoded.

    """
    variants = []
    for data, sha in zip(table["image"].to_pylist(), table["sha256"].to_pylist(), strict=True):
        try:
            variants.append(phash_variants(decode(data)))
        except ImageError as error:
            raise UserError(f"row with sha256 {sha}: {error}") from None
    column = pa.array(variants, pa.list_(pa.int64()))
    return table.drop_columns("image").append_column("variants", column)


def _twins(seen: Seen, table: pa.Table) -> Twins:
    variants = np.array(table["variants"].to_pylist(), dtype=np.int64)
    return seen.twins(table["pixel_sha256"].to_pylist(), variants)
