"""A worker's slot as the front has it: memory to send answers from, and the descriptor by which it is lent."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from itertools import count

__all__ = ["Slot"]

_numbers = count()


class Slot:
    """Memory that a worker makes answers in, mapped here to be read.

    ``number`` is the slot's own in this server. ``told`` are called with it once the worker has given the slot up.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        """Map ``size`` bytes of a descriptor, which belongs to the slot, and is closed where this raises OSError."""
        self.number = next(_numbers)
        self.size = size
        self.descriptor = descriptor
        try:
            self.memory = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        except OSError:
            os.close(descriptor)
            raise
        self.told: set[Callable[[int], None]] = set()
        self.dropped = False

    def drop(self) -> None:
        """Close the descriptor, for the worker does not use the slot any more; views of the memory stay."""
        if not self.dropped:
            self.dropped = True
            os.close(self.descriptor)
            for tell in tuple(self.told):
                tell(self.number)
            self.told.clear()
