"""A tar read at random for its headers alone, wherever reading costs a round trip."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from webdataset.tarheader import BLOCK

__all__ = ["RangeSource", "Read"]

Read: TypeAlias = "Callable[[int, int], bytes | bytearray]"
"""``read(offset, length)`` gives just these bytes, which are there, or raises ShardError."""

# A round trip costs about as much as this many bytes: a shorter gap is read, a longer one leapt over.
_LEAP = 64 << 10
_DENSE_WINDOW = 1 << 20
_LEAPING_WINDOW = 4 << 10


class RangeSource:
    """A tar of ``size`` bytes: small members are read many at once, the data of large ones is never fetched."""

    __slots__ = ("_base", "_buffer", "_read", "_size")

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._size = size
        self._base = 0
        self._buffer = b""

    @property
    def end(self) -> int:
        """The size of the tar."""
        return self._size

    def block(self, offset: int) -> bytes:
        """Return the 512 bytes at an offset, fewer at the end. Blocks where they are not at hand."""
        return self.read(offset, BLOCK)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at an offset, fewer at the end. Blocks where they are not at hand."""
        at = offset - self._base
        if not 0 <= at <= len(self._buffer) - size:
            self._move(offset, size)
            at = 0
        return self._buffer[at : at + size]

    def _move(self, offset: int, size: int) -> None:
        near = offset < self._base + len(self._buffer) + _LEAP
        # Nothing is known at the first header, so little is asked for.
        window = _DENSE_WINDOW if near and self._buffer else _LEAPING_WINDOW
        wanted = max(0, min(max(window, size), self._size - offset))
        self._buffer = bytes(self._read(offset, wanted)) if wanted else b""
        self._base = offset
