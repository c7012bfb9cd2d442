"""The memory allocator of the C library."""

import ctypes
import platform

from attribution.device_memory import FREED_MEMORY_KEPT

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers in malloc.h
_MAPPED = 2**25
"""The size in bytes from which a block is mapped by itself: the largest that glibc allows."""


def keep_freed_memory() -> None:
    """Let the process keep up to 512 MB of freed memory for the next tensors, where the C library is glibc.

    By default glibc returns large amounts of freed memory to the system, and every pass asks for the same memory again, page by
    page. This takes about a tenth of the time of retraining on digits (docs/speed.md). Results do not change.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _MAPPED)
        library.mallopt(_TRIM_THRESHOLD, FREED_MEMORY_KEPT)
