"""Memory that was freed: given back to the system, or kept for the next batch."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 512 * 1024 * 1024
_MAX_MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024
"""The largest that glibc takes."""


def keep_freed_memory() -> None:
    """
    Let the C library keep what is freed until `trim_heap`, for a process that soon needs it again.

    glibc gives large blocks back at once and has the kernel fill them with zeros the next time: 3 % of
    the time of an upload, measured on batches of passages.
    """
    with suppress(AttributeError, OSError):  # another C library has its own ways
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD_BYTES)


def trim_heap() -> None:
    """
    Return what the C library keeps of freed memory; takes milliseconds.

    glibc keeps what a large document took: 70 MB after one of 20 million characters, otherwise.
    """
    with suppress(AttributeError, OSError):  # another C library has its own ways
        ctypes.CDLL(None).malloc_trim(0)
