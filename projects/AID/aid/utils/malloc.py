"""Options of glibc's allocator for freed memory; no effect with other C libraries.

By default glibc returns large blocks to the kernel when they are freed, and a new block has its
pages zeroed one by one. A training step allocates and frees hundreds of feature maps of 60 MB.
"""

import ctypes
import sys

__all__ = ["keep_freed_memory", "return_freed_memory"]

# Constants of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
IS_GLIBC = hasattr(LIBC, "mallopt")


def keep_freed_memory() -> None:
    """Keep freed memory in this process for reuse, until the process ends."""
    if IS_GLIBC:
        LIBC.mallopt(M_MMAP_MAX, 0)
        LIBC.mallopt(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Return freed memory to the kernel, now and whenever a block above 64 KiB is freed."""
    if IS_GLIBC:
        LIBC.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        LIBC.malloc_trim(0)
