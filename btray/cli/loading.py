"""Heavy modules loaded while Ray starts: the two take seconds each."""

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def loading(*modules: str) -> Iterator[None]:
    """Import modules in a thread beside the body; all are there, or have raised, at the end."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        imports = [thread.submit(importlib.import_module, name) for name in modules]
        yield
        for done in imports:
            done.result()
