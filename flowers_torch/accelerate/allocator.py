"""Freed memory stays with the process instead of going back to the operating system."""

import ctypes
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Sets the allocator of this process; returns whether the C library has the settings.

    At most 2 GiB above the highest block in use stay with the process. Source: mallopt(3).
    """
    try:
        mallopt: Any = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
