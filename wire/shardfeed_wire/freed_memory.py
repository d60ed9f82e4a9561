"""What becomes of freed memory: a trainer keeps it for the next message, a server gives it back to the kernel.

ZeroMQ allocates each message that it receives, and frees it when the trainer has dropped the batch. With
glibc's own thresholds the kernel then takes pages away after each batch, and clears new ones for the next. So it is
with the blocks that a worker fetches of far shards.

A server's front receives only small messages from trainers, and large ones from who wants its memory. glibc raises its
thresholds once such a block was freed, and takes the next ones from the heap; there one small block above them, of
a trainer that connected meanwhile, keeps all of it.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Final

__all__ = ["give_back_freed_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES: Final = 256 << 20
_FROM_HEAP_BYTES: Final = 32 << 20
"""What glibc raises the threshold to by itself, at most, once a block of that size was freed."""
_MAPPED_BYTES: Final = 128 << 10
"""The threshold that glibc begins with; set, it stays."""


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 256 MiB of freed memory, and take blocks of up to 32 MiB from there, in this whole process.

    Nothing is done, and False returned, with another C library, or where the environment says how to do it (MALLOC_*,
    GLIBC_TUNABLES). Only the first call does anything.
    """
    return _set({_M_MMAP_THRESHOLD: _FROM_HEAP_BYTES, _M_TRIM_THRESHOLD: _KEPT_BYTES})


@functools.cache
def give_back_freed_memory() -> bool:
    """Let every block of 128 KiB and more be a mapping of its own, in this whole process, which ends as it is freed.

    Nothing is done, and False returned, where `keep_freed_memory` does nothing, or was called before.
    """
    return not keep_freed_memory.cache_info().currsize and _set({_M_MMAP_THRESHOLD: _MAPPED_BYTES})


def _set(parameters: dict[int, int]) -> bool:
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    return mallopt is not None and all(mallopt(name, value) for name, value in parameters.items())
