"""Where a tar is read from: a file at random, a stream in order, or bytes at hand.

A walk over a tar asks for headers in order of their offsets, and between them for data that it wants.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from shardfeed_wire.errors import ShardError
from webdataset.tarheader import BLOCK, what_it_is_instead

__all__ = ["BytesSource", "FileSource", "OrderedSource", "ReadsBytes", "Source", "StreamSource"]

_STREAM_WINDOW = 256 << 10
_DENSE_WINDOW = 256 << 10
# Holds the end of one sample and the start of the next where small fields follow a large one.
_LEAPING_WINDOW = 4 << 10
_PIECE = 4 << 20


class ReadsBytes(Protocol):
    """A binary stream: ``read(n)`` gives at most n bytes, and none at its end."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes; may block."""


class Source(Protocol):
    """A tar that answers for the bytes at an offset."""

    @property
    def end(self) -> int:
        """The offset up to which it was read; once less came than was asked for, the end of the tar."""

    def block(self, offset: int) -> bytes:
        """Return the 512 bytes at an offset, fewer at the end of the tar. May block."""

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at an offset, fewer at the end of the tar. May block.

        Memory is taken as bytes arrive, not as they are claimed.
        """


class OrderedSource(Source, Protocol):
    """A tar that can also be read on from where the last block or data ended."""

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes, fewer at the end of the tar. May block."""

    def give_back(self, data: bytes) -> None:
        """Let ``data``, which was read last and begins with a block, be read once more."""


class BytesSource:
    """A tar, or a run of members of one, that is in memory already."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._at = 0
        self._data = data

    @property
    def end(self) -> int:
        """The number of bytes there are."""
        return len(self._data)

    def block(self, offset: int) -> bytes:
        """Return the 512 bytes at an offset, fewer at the end."""
        return self.read(offset, BLOCK)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at an offset, fewer at the end."""
        self._at = offset + size
        return self._data[offset : self._at]

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes, fewer at the end."""
        return self.read(self._at, size)

    def give_back(self, data: bytes) -> None:
        """Do nothing: any block can be had again."""


class FileSource:
    """A tar file of ``size`` bytes read at random, headers only, by a descriptor that stays the caller's."""

    __slots__ = ("_base", "_buffer", "_fd", "_size")

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._base = 0
        self._buffer = b""

    @property
    def end(self) -> int:
        """The size of the file, or less where it turned out shorter."""
        return self._size

    def block(self, offset: int) -> bytes:
        """Return the 512 bytes at an offset, fewer at the end. Blocks where they are not at hand."""
        at = offset - self._base
        if at > len(self._buffer) - BLOCK:
            self._move(offset, BLOCK)
            at = 0
        return self._buffer[at : at + BLOCK]

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at an offset, fewer at the end. Blocks where they are not at hand."""
        at = offset - self._base
        if at > len(self._buffer) - size:
            self._move(offset, size)
            at = 0
        return self._buffer[at : at + size]

    def _move(self, offset: int, size: int) -> None:
        # Small members lie close together: read many at once. Large ones are leapt over.
        window = _DENSE_WINDOW if offset < self._base + len(self._buffer) + _LEAPING_WINDOW else _LEAPING_WINDOW
        wanted = max(0, min(max(window, size), self._size - offset))
        self._buffer = os.pread(self._fd, wanted, offset)
        self._base = offset
        if len(self._buffer) < wanted:
            self._size = offset + len(self._buffer)


class StreamSource:
    """A tar read from a stream in order; gzip, bzip2 and xz are unpacked on the way."""

    __slots__ = ("_at", "_read", "_read_on", "_rest", "_start")

    def __init__(self, stream: ReadsBytes) -> None:
        self._at = 0
        self._start = b""
        # One that is buffered reads large members straight into their bytes, and small ones fast.
        if not isinstance(stream, io.BufferedIOBase):
            stream = io.BufferedReader(_Rejoined(b"", stream), _STREAM_WINDOW)
        self._read: Callable[[int], bytes] = stream.read
        start = self.take(BLOCK)
        compressed = what_it_is_instead(start)
        if compressed is None:
            self._start = start
        else:
            rejoined = io.BufferedReader(_Rejoined(start, stream), _STREAM_WINDOW)
            self._read = io.BufferedReader(_unpacked(compressed, rejoined), _STREAM_WINDOW).read
            self._at = 0

    @property
    def end(self) -> int:
        """The offset up to which the stream was read."""
        return self._at

    def block(self, offset: int) -> bytes:
        """Return the 512 bytes at an offset not before the last, fewer at the end. May block."""
        if self._start:
            start, self._start = self._start, b""
            return start
        gap = offset - self._at
        if gap > BLOCK:
            self._skip(gap)
            if self._at < offset:
                return b""
            gap = 0
        # The padding of the member before, mostly.
        return self.take(gap + BLOCK)[gap:]

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at an offset not before the last, fewer at the end. May block."""
        if offset > self._at:
            self._skip(offset - self._at)
        return self.take(size) if offset == self._at else b""

    def give_back(self, data: bytes) -> None:
        """Let ``data``, which was read last and begins with a block, be read once more."""
        self._start, rest = data[:BLOCK], data[BLOCK:]
        if rest:
            self._at -= len(rest)
            self._rest, self._read_on, self._read = rest, self._read, self._read_again

    def _read_again(self, size: int) -> bytes:
        """Read what was given back, and let the next call read on."""
        data, self._rest = self._rest[:size], self._rest[size:]
        if not self._rest:
            self._read = self._read_on
        return data

    def take(self, size: int) -> bytes:
        """Read on for ``size`` bytes, fewer only at the end of the tar. May block."""
        try:
            data = self._read(size if size < _PIECE else _PIECE)
            if len(data) == size:
                self._at += size
                return data
            # A read may give less before the end.
            parts = [data]
            while data and (size := size - len(data)):
                data = self._read(min(size, _PIECE))
                parts.append(data)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise ShardError(f"it is compressed, and cannot be unpacked: {error}") from error
        data = b"".join(parts)
        self._at += len(data)
        return data

    def _skip(self, size: int) -> None:
        while size and (data := self.take(min(size, _PIECE))):
            size -= len(data)


class _Rejoined(io.RawIOBase):
    """A stream with the bytes put back that were read to look at them."""

    def __init__(self, start: bytes, stream: ReadsBytes) -> None:
        super().__init__()
        self._start = start
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start or self._stream.read(len(buffer))
        self._start = data[len(buffer) :]
        data = data[: len(buffer)]
        buffer[: len(data)] = data
        return len(data)


def _unpacked(format_name: str, stream: Any) -> Any:
    if format_name == "gzip-compressed":
        return gzip.GzipFile(fileobj=stream, mode="rb")
    if format_name == "bzip2-compressed":
        return bz2.BZ2File(stream)
    if format_name == "xz-compressed":
        return lzma.LZMAFile(stream)
    raise ShardError(f"it is {format_name}, which is not read here: unpack it first")
