"""How btray runs Ray Data: in order, in silence, its own exceptions left as they are."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ray.data import DataContext


@contextmanager
def data_context() -> Iterator[None]:
    """Make Ray data sets in this block keep the rows' order and say nothing."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # The new reader puts small files into one task: 8 files of 5 MB were read by one process.
    context.use_datasource_v2 = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)
