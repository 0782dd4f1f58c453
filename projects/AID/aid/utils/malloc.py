"""What the C library does with freed memory, where that is glibc.

It hands large blocks back to the kernel at once and takes them anew page by page, each of which is
zeroed first. A training step makes and frees maps of 60 MB by the hundred.
"""

import ctypes
import sys

__all__ = ["keep_freed_memory", "return_freed_memory"]

# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
IS_GLIBC = hasattr(LIBC, "mallopt")


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for its next step. Holds until it ends."""
    if IS_GLIBC:
        LIBC.mallopt(M_MMAP_MAX, 0)
        LIBC.mallopt(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Let this process hand back what it has freed, and every larger block as it is freed."""
    if IS_GLIBC:
        LIBC.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        LIBC.malloc_trim(0)
