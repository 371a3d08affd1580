"""How btray runs Ray Data: in order, in silence, its own exceptions left as they are."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ray.data import DataContext, ExecutionResources


@contextmanager
def data_context(in_flight: int | None = None) -> Iterator[None]:
    """Make Ray data sets in this block keep the rows' order and say nothing.

    `in_flight` bounds the bytes they keep in the object store; None leaves that to Ray Data.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # The new reader puts small files into one task: 8 files of 5 MB were read by one process.
    context.use_datasource_v2 = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True
    if in_flight is not None:
        limits = ExecutionResources.for_limits(object_store_memory=in_flight)
        context.execution_options.resource_limits = limits
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)
