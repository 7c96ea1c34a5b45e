"""Keeps freed memory in the process.

glibc gives every large temporary back to the system when it is freed, and the system clears its pages
anew for the next one: on a CPU about a seventh of a step (docs/performance.md).
"""

import ctypes
import sys

# malloc.h; blocks above the threshold (memory banks) still come from the system, and go back to it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_THRESHOLD, _MMAP_THRESHOLD = 2**31 - 1, 2**30


def keep_freed_memory() -> None:
    """Sets the thresholds of the whole process; does nothing where the C library is not glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


def give_back_freed_memory() -> None:
    """Gives the memory that was kept back; does nothing where the C library is not glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
