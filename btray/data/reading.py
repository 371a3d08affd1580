"""Ray Data reads a source: bytes, decoding and hashing run in workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any, Final

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from btray.cluster import connect
from btray.core.images import ImageError
from btray.data.context import data_context
from btray.data.dataset import SCHEMA
from btray.data.measure import measure
from btray.data.sources.base import Item, Record, Source
from btray.errors import UserError

READ_SCHEMA: Final = pa.schema(
    # `split` is the official one
    [field for field in SCHEMA if field.name not in ("group_id", "official_split")]
    + [("thumbnail", pa.binary()), ("frame", pa.binary())]
    + [("code", pa.string()), ("reason", pa.string())]
)
"""Rows read: of a refused image, only `source`, `code` and `reason` are set."""

_ITEM_SCHEMA: Final = pa.schema(
    [
        (field.name, pa.int64() if field.type in (int, int | None) else pa.string())
        for field in fields(Item)
    ]
)
_ITEMS_PER_TASK: Final = 128
_BYTES_PER_BLOCK: Final = 32 * 1024 * 1024


def read_source(source: Source, items: tuple[Item, ...]) -> Iterator[pa.Table]:
    """Yield what a source holds as tables of READ_SCHEMA, in the items' order.

    Raises:
        UserError: the source cannot be reached any more.

    """
    connect()
    with data_context(), _without_ray_error():
        tasks = ray.data.from_arrow([_item_table(some) for some in _portions(items)])
        rows = tasks.map_batches(
            read_items,  # type: ignore[arg-type]  # a batch is an Arrow table here
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"source": source},
        )
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow")


@contextmanager
def _without_ray_error() -> Iterator[None]:
    """Raise a worker's UserError as it was there, without Ray's traceback and advice."""
    try:
        yield
    except UserError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise UserError(str(cause).partition("\n")[0]) from None


def read_items(table: pa.Table, source: Source) -> Iterator[pa.Table]:
    """Read and measure a table of items; yields tables of READ_SCHEMA of bounded size."""
    rows: list[dict[str, Any]] = []
    size = 0
    for fields_ in table.to_pylist():
        for row in _read_item(source, Item(**fields_)):
            rows.append(row)
            size += len(row.get("image", b""))
            if size >= _BYTES_PER_BLOCK:
                yield pa.Table.from_pylist(rows, schema=READ_SCHEMA)
                rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, schema=READ_SCHEMA)


def _read_item(source: Source, item: Item) -> Iterator[dict[str, Any]]:
    try:
        for record in source.read(item):
            yield _row(item, record)
    except ImageError as error:
        yield _refused(item.called(item.name), error.code, str(error))
    except OSError as error:
        reason = f"cannot be read: {error.strerror or type(error).__name__}"
        yield _refused(item.called(item.name), "unreadable", reason)


def _row(item: Item, record: Record) -> dict[str, Any]:
    try:
        measured = measure(record.data)
    except ImageError as error:
        return _refused(item.called(record.name), error.code, str(error))
    known = {name: value for name, value in vars(record).items() if name not in ("name", "data")}
    return {"image": record.data, "source": record.name, **known, **asdict(measured)}


def _refused(name: str, code: str, reason: str) -> dict[str, Any]:
    return {"source": name, "code": code, "reason": reason}


def _item_table(items: tuple[Item, ...]) -> pa.Table:
    return pa.Table.from_pylist([asdict(item) for item in items], schema=_ITEM_SCHEMA)


def _portions(items: tuple[Item, ...]) -> Iterator[tuple[Item, ...]]:
    """Cut the items into tasks of about _ITEMS_PER_TASK images."""
    portion: list[Item] = []
    images = 0
    for item in items:
        portion.append(item)
        images += item.images
        if images >= _ITEMS_PER_TASK:
            yield tuple(portion)
            portion, images = [], 0
    if portion:
        yield tuple(portion)
