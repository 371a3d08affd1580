"""The C library's memory allocator, set for training on a CPU."""

import ctypes
import platform
from typing import Final

_TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_MMAP_THRESHOLD: Final = -3
_NEVER: Final = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep freed memory for the next step instead of handing it back to the system.

    Every training step frees and takes the same large tensors; by default glibc unmaps
    them and the kernel has to clear new pages each time, a tenth of a step of a small
    network (benchmarks/train_throughput.py). Does nothing without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _NEVER)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
