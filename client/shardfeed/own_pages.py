"""Which memory of a private mapping is this process's own, because it was written to."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

import numpy as np

__all__ = ["has_own_pages"]

_PAGEMAP: Final = Path("/proc/self/pagemap")
_ENTRY: Final = 8
_THERE: Final = np.uint64(3 << 62)
"""In memory, or swapped."""
_OF_FILE: Final = np.uint64(1 << 61)


def has_own_pages(memory: mmap.mmap) -> bool:
    """Whether any page of a private mapping of a file is this process's own; True where the kernel does not say."""
    first = np.frombuffer(memory, np.uint8).ctypes.data // mmap.PAGESIZE
    pages = -(-len(memory) // mmap.PAGESIZE)
    try:
        with _PAGEMAP.open("rb", buffering=0) as pagemap:
            pagemap.seek(first * _ENTRY)
            said = pagemap.read(pages * _ENTRY)
    except OSError:
        return True
    entries = np.frombuffer(said, np.uint64)
    if len(entries) != pages:
        return True
    return bool(((entries & _THERE != 0) & (entries & _OF_FILE == 0)).any())
