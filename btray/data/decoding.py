"""Ray Data reads the Parquet and decodes it, once, to uint8 squares.

Torch is not loaded here, nor in the tasks: that would double the start-up of a run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
import ray
from ray.data import TaskPoolStrategy
from ray.data.expressions import col
from ray.exceptions import RayTaskError

from btray.cluster import usable_cores
from btray.config import ImageConfig
from btray.core.images import ImageError, decode
from btray.core.preprocess import to_square
from btray.data.context import data_context
from btray.data.dataset import ROWS, Dataset
from btray.errors import UserError

_ROWS_PER_TASK: Final = 512
_ROWS_PER_PROCESS: Final = 5000

Blocks = list[ray.ObjectRef[Any]]
"""References of Arrow tables."""


def decoded(
    dataset: Dataset, splits: Sequence[str], image: ImageConfig, processes: int
) -> ray.data.Dataset:
    """Return a lazy Ray data set of some splits' decoded rows, in stored order.

    Columns: `square` (size x size bytes), `label`, `split` and `sha256` (text). To be made
    and consumed inside `readable`.
    """
    rows = ray.data.read_parquet(
        f"{dataset.path}/{ROWS}",
        filesystem=dataset.filesystem,
        override_num_blocks=tasks(dataset),
    )
    wanted = rows.filter(expr=col("split").is_in(list(splits)))
    return wanted.select_columns(["image", "label", "split", "sha256"]).map_batches(
        _decode_table,  # type: ignore[arg-type]  # a batch is an Arrow table here
        batch_format="pyarrow",
        fn_kwargs={"image": image},
        compute=TaskPoolStrategy(size=processes),
    )


def tasks(dataset: Dataset) -> int:
    """Return into how many tasks the reading of a data set is cut."""
    return max(1, dataset.manifest.rows // _ROWS_PER_TASK)


def _processes(dataset: Dataset) -> int:
    """Return how many processes decode beside the start of a run.

    One is done with a few thousand rows before the training workers are up; more would
    only take the cores they start on.
    """
    return max(1, min(usable_cores(), dataset.manifest.rows // _ROWS_PER_PROCESS))


def decode_rows(dataset: Dataset, splits: Sequence[str], image: ImageConfig) -> Blocks:
    """Decode the rows of some splits now; return their blocks, in stored order.

    Raises:
        UserError: rows missing or damaged.

    """
    with readable(dataset):
        rows = decoded(dataset, splits, image, _processes(dataset)).materialize()
        check_rows(dataset, splits, rows.count())
        blocks: Blocks = rows.to_arrow_refs()
    return blocks


def check_rows(dataset: Dataset, splits: Sequence[str], found: int) -> None:
    """Raise UserError unless so many rows of some splits are what the manifest counts."""
    expected = sum(dataset.count(split) for split in splits)
    if found != expected:
        raise UserError(f"{found} rows of {expected}")


@contextmanager
def readable(dataset: Dataset) -> Iterator[None]:
    """Run Ray Data quietly, and turn what it says of missing or damaged rows into one line.

    Raises:
        UserError: rows missing or damaged.

    """
    try:
        with data_context():
            yield
    except (OSError, pa.ArrowInvalid, UserError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        reason = str(cause).strip().splitlines()[0]
        raise UserError(
            f"{dataset.uri}: its rows are missing or damaged ({reason}); import it again"
        ) from None


def _decode_table(table: pa.Table, image: ImageConfig) -> pa.Table:
    squares = [
        _decode_row(data, sha, image)
        for data, sha in zip(table["image"].to_pylist(), table["sha256"].to_pylist(), strict=True)
    ]
    column = pa.array(squares, type=pa.binary(image.size * image.size))
    return table.drop_columns("image").append_column("square", column)


def _decode_row(data: bytes, sha: str, image: ImageConfig) -> bytes:
    try:
        return to_square(decode(data), image).tobytes()
    except ImageError as error:
        raise UserError(f"row with sha256 {sha}: {error}") from None
