"""Memory that was freed is kept for the next message, instead of being given back to the kernel.

ZeroMQ allocates each message that it receives, and frees it when the trainer has dropped the batch. With
glibc's own thresholds the kernel then takes pages away after each batch, and clears new ones for the next. So it is
with the blocks that a worker fetches of far shards.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Final

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES: Final = 256 << 20
_FROM_HEAP_BYTES: Final = 32 << 20
"""What glibc raises the threshold to by itself, at most, once a block of that size was freed."""


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 256 MiB of freed memory, and take blocks of up to 32 MiB from there, in this whole process.

    Nothing is done, and False returned, with another C library, or where the environment says how to do it (MALLOC_*,
    GLIBC_TUNABLES). Only the first call does anything.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _FROM_HEAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
