"""An answer in memory: laid out once, sent from there in either framing, never copied again.

The whole message lies in one run of bytes exactly as tenbin's framing in one buffer, so "single" is
one view of it, and "multipart" is views of the chunks' contents inside it::

    |...free...| control, keyhash, keys | dense columns    | other columns |
               ^ start                  ^ fixed, decoded   ^ written last  ^ end
                                          in place

What stands in front is written last, when its size is known, so that it ends where the dense
columns begin. The memory is reused and dirty: every byte from start to end is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardfeed_wire.errors import BadRequestError
from shardfeed_wire.tenbin import ALIGNMENT, MAGIC, encode_chunks, encode_list

__all__ = ["MOST_ANSWER_BYTES", "Allocate", "Answer", "AnswerMemory", "Parts"]

Allocate: TypeAlias = Callable[[int], memoryview]
"""Gives writable memory of at least so many bytes; a second call makes the first one's memory void."""

MOST_ANSWER_BYTES: Final = 4 << 30
"""The most that one answer may take: what a client takes as one frame."""

_FRAME: Final = Struct("<8sq")
_HEADROOM: Final = 64 << 10
_HEADROOM_PER_ROW: Final = 96
"""A key hash, a shard's number, an offset and a key of usual length."""


class Answer(msgspec.Struct, frozen=True):
    """Where an answer lies in the memory that was allocated last.

    ``start`` to ``end`` is the message in one buffer; ``chunks`` are offset and length of each part
    of a multipart message: header and data of ``control``, then of each tensor.
    """

    start: int
    end: int
    chunks: tuple[tuple[int, int], ...]


class Parts(NamedTuple):
    """A tensor of ``dtype`` and ``shape`` that is still in parts: buffers that make up its bytes together."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    parts: Sequence[Any]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Parts:
        """Make it of one array."""
        array = np.ascontiguousarray(array)
        return cls(array.dtype, array.shape, [array])


class AnswerMemory:
    """The memory of one answer of ``rows`` rows while it is made.

    Call ``place_dense`` once, fill the arrays, then ``finish``. Both raise BadRequestError, before any memory
    is taken, where the answer would have more than ``most`` bytes; so does ``check``.
    """

    def __init__(self, rows: int, allocate: Allocate, most: int = MOST_ANSWER_BYTES) -> None:
        self._rows, self._allocate, self._most = rows, allocate, most
        self._dense = self._end = _rounded(_HEADROOM + rows * _HEADROOM_PER_ROW)
        self._memory = memoryview(b"")
        self._chunks: list[tuple[int, int]] = []

    def place_dense(self, columns: Sequence[tuple[np.dtype[Any], tuple[int, ...]]], more: int) -> list[NDArray[Any]]:
        """Allocate, and return one array of dirty bytes for each dtype and whole shape.

        ``more`` is a guess of the bytes that ``finish`` will add behind them.
        """
        needed = sum(
            _framed_size(_header_size(shape)) + _framed_size(_nbytes(dtype, shape)) for dtype, shape in columns
        )
        self.check(needed)
        self._memory = self._allocate(min(self._dense + needed + more, self._most))
        return [self._place(dtype, shape) for dtype, shape in columns]

    def check(self, more: int) -> None:
        """Raise BadRequestError where ``more`` bytes beside what is written are more than an answer may have."""
        if self._end + more > self._most:
            raise BadRequestError(
                f"the answer to {self._rows} samples would take more than {self._most:,} bytes, the most there may be; "
                "ask for fewer at once (batch_size), or make them smaller with transforms"
            )

    def finish(self, front: Callable[[], Sequence[NDArray[Any]]], behind: Sequence[Parts]) -> Answer:
        """Write the rest and return where the answer lies.

        ``front`` gives the control message as uint8, and the tensors between it and the dense
        columns; it is called when everything else is written. ``behind`` are the tensors after them.
        The arrays of ``place_dense`` must not be used any more.
        """
        self._make_room(self._dense, self._end + sum(_size_of(tensor) for tensor in behind))
        for tensor in behind:
            self._write(tensor)
        chunks = encode_list(tensors := list(front()), ["control", *[""] * (len(tensors) - 1)])
        encoded = encode_chunks(chunks)
        if len(encoded) > self._dense:
            self._make_room(_rounded(len(encoded)), self._end)
        start = at = self._dense - len(encoded)
        self._memory[start : self._dense] = encoded
        places = []
        for chunk in chunks:
            size = memoryview(chunk).nbytes
            places.append((at + _FRAME.size, size))
            at += _framed_size(size)
        return Answer(start, self._end, (*places, *self._chunks))

    def _make_room(self, dense: int, end: int) -> None:
        """Have memory of ``end`` bytes, or more, with what is written so far starting at ``dense``."""
        shift = dense - self._dense
        if not shift and end <= len(self._memory):
            return
        self.check(end + shift - self._end)
        # A copy, for the new memory may be the same pages mapped anew.
        written = bytes(self._memory[self._dense : self._end])
        self._memory = self._allocate(end + shift)
        self._dense, self._end = dense, dense + len(written)
        self._memory[self._dense : self._end] = written
        self._chunks = [(at + shift, size) for at, size in self._chunks]

    def _place(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Write the header chunk of a tensor and the frame of its data chunk; return the data as an array."""
        header = Struct(f"<8s8sq{len(shape)}q").pack(dtype.str[1:].encode(), b"", len(shape), *shape)
        self._frame(len(header))
        at = self._chunks[-1][0]
        self._memory[at : at + len(header)] = header
        self._frame(_nbytes(dtype, shape))
        return np.ndarray(shape, dtype, self._memory, self._chunks[-1][0])

    def _write(self, tensor: Parts) -> None:
        self._place(tensor.dtype, tensor.shape)
        at = self._chunks[-1][0]
        for part in tensor.parts:
            data = memoryview(part)
            if data.nbytes:  # a view with a zero in its shape cannot be cast
                self._memory[at : at + data.nbytes] = data.cast("B")
                at += data.nbytes

    def _frame(self, size: int) -> None:
        """Write magic, length and padding of the next chunk, and note where its bytes go."""
        _FRAME.pack_into(self._memory, self._end, MAGIC, size)
        at = self._end + _FRAME.size
        self._end = at + _rounded(size)
        self._memory[at + size : self._end] = bytes(self._end - at - size)
        self._chunks.append((at, size))


def _header_size(shape: tuple[int, ...]) -> int:
    return 24 + 8 * len(shape)


def _nbytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def _size_of(tensor: Parts) -> int:
    return _framed_size(_header_size(tensor.shape)) + _framed_size(_nbytes(tensor.dtype, tensor.shape))


def _framed_size(size: int) -> int:
    return _FRAME.size + _rounded(size)


def _rounded(size: int) -> int:
    return size + -size % ALIGNMENT
