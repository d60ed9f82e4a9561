"""An object of a store as a stream that resumes where a transfer broke, or raises."""

from __future__ import annotations

import io
from typing import Any

from webdataset.remote import identify, open_ranges, public_url, read_range

__all__ = ["ObjectStream"]

_WINDOW = 8 << 20
_PATIENCE = 60.0


class ObjectStream(io.RawIOBase):
    """Reads an object in order, a window at a time, and only while it stays the one that was opened."""

    def __init__(self, url: str) -> None:
        """Look for the object. Blocks.

        :raises ShardError: it cannot be had. :raises ConfigError: the extra ``objects`` is not installed.
        """
        super().__init__()
        self._url = url
        self._name = public_url(url)
        self._ranges = open_ranges(url, 1)
        self._identity = identify(self._ranges, url, self._name, patience=_PATIENCE, insist=False)
        self._window = memoryview(b"")
        self._next = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, at most a bufferful. Blocks, while resuming too.

        :raises ShardError: the transfer broke too often in a row, or the object changed meanwhile.
        """
        if not self._window and self._next < self._identity.size:
            length = min(_WINDOW, self._identity.size - self._next)
            data = read_range(
                self._ranges, self._url, self._name, self._identity, self._next, length, patience=_PATIENCE
            )
            self._window = memoryview(data)
            self._next += length
        count = min(len(buffer), len(self._window))
        buffer[:count] = self._window[:count]
        self._window = self._window[count:]
        return count

    def close(self) -> None:
        """End the reading."""
        super().close()
        self._ranges.close()
