"""SCTP's framing: messages of chunks to fragments and back. Pure: no sockets, no clock.

Every fragment is one SCTP message: a header of 12 bytes, then a piece of a body. The body of a message
is a table, the sizes of its chunks as uint64, and then the chunks; it is cut into fragments wherever
they are full. On one SCTP stream one message follows the other, so a fragment needs no name for its
message. Streams go on side by side. `docs/protocol.md` has the bytes.

Order across streams: the last fragment of each message bears a number that counts the sender's
messages in the order in which they were finished, and the receiver hands them out in that order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any

from shardfeed_wire.errors import MessageError
from shardfeed_wire.transport import Limits

__all__ = ["ABANDON", "FIRST", "GREETING", "HEADER", "LAST", "LEFT_OUT", "Cutter", "Inbox"]

HEADER = Struct("<B3xII")
"""Flags; the message's number, where it is the last fragment; chunks in the message, where it is the first."""

FIRST, LAST, ABANDON = 1, 2, 4
"""Flags: the message begins; it ends; the message under way on this stream is given up by its sender."""

GREETING = b"shardfeed sctp 1"
"""The first message of each side, on stream 0: it speaks this framing."""

LEFT_OUT = -1
"""No stream: a message that comes before others that are here."""

_SIZE = Struct("<Q")
_OVERHEAD = 256
"""What a fragment costs beside its bytes, about, for the kernel as for us."""

_MOST_BEHIND = 64 << 20
"""Bytes that may come while an earlier message is missing, as one that is sent again is: a send buffer holds less."""


class Cutter:
    """A message on its way out, cut into fragments one at a time: how many go depends on the socket."""

    def __init__(self, chunks: Sequence[Any], fragment_bytes: int) -> None:
        """Refer to the chunks; nothing is copied."""
        views = [_flat(chunk) for chunk in chunks]
        table = memoryview(b"".join(_SIZE.pack(view.nbytes) for view in views))
        self._chunks = len(views)
        self._room = fragment_bytes - HEADER.size
        self._left = deque(view for view in (table, *views) if view.nbytes)
        self._started = False
        self.bytes = sum(view.nbytes for view in self._left)

    def fragment(self, number: int) -> list[Any]:
        """Return the next fragment in parts, without passing it: `passed` does. ``number`` is for the last one."""
        parts, room = [], self._room
        for view in self._left:
            parts.append(view[:room])
            room -= parts[-1].nbytes
            if not room:
                break
        flags = (0 if self._started else FIRST) | (LAST if self.bytes <= self._room else 0)
        return [HEADER.pack(flags, number if flags & LAST else 0, 0 if self._started else self._chunks), *parts]

    def passed(self) -> bool:
        """Go on to the next fragment; say whether that one was the last."""
        self._started = True
        room = self._room
        while self._left and room:
            view = self._left[0]
            taken = min(room, view.nbytes)
            room -= taken
            self.bytes -= taken
            if taken == view.nbytes:
                self._left.popleft()
            else:
                self._left[0] = view[taken:]
        return not self.bytes

    @property
    def has_started(self) -> bool:
        """Whether a fragment of it is gone."""
        return self._started


def _flat(chunk: Any) -> memoryview:
    view = memoryview(chunk)
    return view.cast("B") if view.nbytes else memoryview(b"")


class _Partial:
    """A message on its way in on one stream. Memory is taken as bytes arrive, never for a size that was only named."""

    def __init__(self, count: int, limits: Limits) -> None:
        if count > limits.frames:
            raise MessageError(f"sent a message of {count} frames; {limits.frames} are the most taken")
        self._limits = limits
        self._table: bytearray | None = bytearray()
        self._count = count
        self._sizes: list[int] = []
        self.frames: list[bytearray] = []
        self.bytes = 0

    def add(self, body: memoryview) -> None:
        self.bytes += body.nbytes
        if self._table is not None:
            missing = self._count * _SIZE.size - len(self._table)
            self._table += body[:missing]
            body = body[missing:]
            if len(self._table) < self._count * _SIZE.size:
                return
            self._read_table(self._table)
            self._table = None
        while body.nbytes:
            frame = self.frames[-1] if self.frames else bytearray()
            room = self._sizes[len(self.frames) - 1] - len(frame) if self.frames else 0
            if not room:
                raise MessageError("sent more bytes than its message has")
            frame += body[:room]
            body = body[room:]
            self._open_next()

    def _read_table(self, table: bytearray) -> None:
        self._sizes = [size for (size,) in _SIZE.iter_unpack(table)]
        most = self._limits.frame_bytes
        if (largest := max(self._sizes, default=0)) > most:
            raise MessageError(f"sent a frame of {largest} bytes; {most} are the most taken")
        if self._sizes:
            self.frames.append(bytearray())
            self._open_next()

    def _open_next(self) -> None:
        """Open the frames that follow one that is full."""
        while len(self.frames[-1]) == self._sizes[len(self.frames) - 1] and len(self.frames) < len(self._sizes):
            self.frames.append(bytearray())

    def whole(self) -> list[Any]:
        if self._table is not None or [len(frame) for frame in self.frames] != self._sizes:
            raise MessageError("ended a message before all of it was sent")
        return [memoryview(frame) for frame in self.frames]


class Inbox:
    """What arrives from one peer: fragments in, messages out, in the order in which the peer finished them."""

    def __init__(self, limits: Limits, streams: int) -> None:
        """Take messages within ``limits`` on streams 0 .. ``streams`` - 1."""
        self._limits, self._streams = limits, streams
        self._partial: dict[int, _Partial] = {}
        self._next = 0
        self._held: dict[int, list[Any]] = {}
        self._behind = 0

    @property
    def partial_bytes(self) -> int:
        """Bytes of messages that have begun and not ended."""
        return sum(partial.bytes for partial in self._partial.values())

    @property
    def awaited(self) -> set[int]:
        """Streams whose message has begun and not ended; ``LEFT_OUT`` where one that comes before others is missing."""
        return self._partial.keys() | ({LEFT_OUT} if self._held else set())

    def add(self, stream: int, fragment: memoryview) -> Iterator[list[Any]]:
        """Take one whole fragment; yield the messages that are complete by it, in order.

        Raises MessageError where the fragment makes no sense or is over a limit; the peer is then no use.
        """
        if stream >= self._streams:
            raise MessageError(f"sent on stream {stream}; {self._streams - 1} is the last")
        if fragment.nbytes < HEADER.size:
            raise MessageError(f"sent a fragment of {fragment.nbytes} bytes, which has no header")
        flags, number, count = HEADER.unpack_from(fragment)
        if flags == ABANDON:
            self._partial.pop(stream, None)
            return
        if flags & ~(FIRST | LAST):
            raise MessageError(f"sent a fragment with unknown flags {flags:#x}")
        if bool(flags & FIRST) == (stream in self._partial):
            raise MessageError("began a message inside another, or went on with none")
        if flags & FIRST:
            self._partial[stream] = _Partial(count, self._limits)
        partial = self._partial[stream]
        partial.add(fragment[HEADER.size :])
        most = self._limits.message_bytes
        if most is not None and self.partial_bytes > most:
            raise MessageError(
                f"sent {self.partial_bytes} bytes without an end of a message; {most} are the most taken"
            )
        if self._held:
            self._behind += fragment.nbytes + _OVERHEAD
            if self._behind > _MOST_BEHIND:
                raise MessageError(f"left out message {self._next}")
        if flags & LAST:
            del self._partial[stream]
            self._hold(number, partial)
            yield from self._in_order()

    def _hold(self, number: int, partial: _Partial) -> None:
        if number in self._held or (number - self._next) % (1 << 32) >= 1 << 31:
            raise MessageError(f"sent message {number} twice")
        self._held[number] = partial.whole()

    def _in_order(self) -> Iterator[list[Any]]:
        while self._next in self._held:
            self._behind = 0
            message = self._held.pop(self._next)
            self._next = (self._next + 1) % (1 << 32)
            yield message
