"""One SCTP association in an asyncio loop, as both sides have it: messages out over several streams, messages in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shardfeed_wire.errors import BrokenChannelError, ClosedChannelError, MessageError
from shardfeed_wire.sctp_fragments import ABANDON, GREETING, HEADER, LEFT_OUT, Cutter, Inbox
from shardfeed_wire.sctp_sockets import (
    ANCILLARY_BYTES,
    MSG_NOTIFICATION,
    STREAMS,
    abort,
    association_end,
    path_change,
    prefer_small,
    stream_of,
    to_stream,
)
from shardfeed_wire.transport import Limits

__all__ = ["FRAGMENT_BYTES", "Association"]

FRAGMENT_BYTES = 256 << 10
"""A fragment's bytes at most. Larger ones cost fewer calls; smaller ones let others in between sooner."""

_AT_ONCE = 16
"""Fragments that are sent or received before others have their turn in the event loop."""

_PROTOCOL = int.from_bytes(b"SFD1", "big")
_ANCILLARY = [to_stream(stream, _PROTOCOL) for stream in range(STREAMS)]

log = logging.getLogger("shardfeed.wire")


@dataclass(slots=True, eq=False)
class _Outgoing:
    cutter: Cutter
    taken: asyncio.Future[None]
    given_up: bool = False


class Association:
    """An association from the moment it is connected to its end. All calls come in its event loop."""

    def __init__(
        self,
        connected: socket.socket,
        name: str,
        limits: Limits,
        scratch: memoryview,
        received: Callable[[list[Any]], None],
        changed: Callable[[], None],
    ) -> None:
        """Greet the peer and begin to read.

        ``name`` is the peer in messages. ``scratch`` has ``FRAGMENT_BYTES`` and may be shared.
        ``received`` gets each message; `taken` says that it was read. ``changed`` is called when the
        peer greeted and when the association ended.
        """
        self.name = name
        self.has_greeted = False
        self.ended: str | None = None
        """Why it ended; None while it has not."""
        self._socket, self._limits, self._scratch = connected, limits, scratch
        self._received, self._changed = received, changed
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(limits, STREAMS)
        self._since, self._begun = self._loop.time(), dict[int, float]()
        self.has_spoken = False
        self._part = bytearray()
        self._unread = 0
        self._reading = self._writing = self._discarding = False
        self._queues: list[deque[_Outgoing]] = [deque() for _ in range(STREAMS)]
        self._turn = 1
        self._finished = 0
        self._end = self._loop.create_future()
        room = connected.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._fragment_bytes = min(FRAGMENT_BYTES, room // 4)
        prefer_small(connected)
        try:
            connected.sendmsg([GREETING], _ANCILLARY[0], socket.MSG_NOSIGNAL)
        except OSError as error:
            self.end(error.strerror or str(error))
            return
        self._read_on()

    # Out

    async def send(self, chunks: Sequence[Any]) -> None:
        """Hand a message to the kernel and return once it has all of it. Raises BrokenChannelError, ClosedChannelError.

        When cancelled, the message was sent whole or will never arrive, and the chunks are not needed any more.
        """
        if self.ended is not None:
            raise BrokenChannelError(self.ended)
        cutter = Cutter(chunks, self._fragment_bytes)
        small = cutter.bytes + HEADER.size <= self._fragment_bytes
        stream = 0 if small else min(range(1, STREAMS), key=lambda number: len(self._queues[number]))
        outgoing = _Outgoing(cutter, self._loop.create_future())
        self._queues[stream].append(outgoing)
        self._flush()
        try:
            await outgoing.taken
        except asyncio.CancelledError:
            if cutter.has_started:
                outgoing.given_up = True
                self._flush()
            else:
                with contextlib.suppress(ValueError):
                    self._queues[stream].remove(outgoing)
            raise

    def _flush(self) -> None:
        """Give the kernel what it takes: what is on stream 0 first, the others in turn."""
        if self.ended is not None or self._writing:
            return
        for _ in range(_AT_ONCE):
            stream = self._next_stream()
            if stream is None:
                return
            try:
                self._send_fragment(stream)
            except BlockingIOError:
                break
            except OSError as error:
                self.end(_said(error))
                return
        self._writing = True
        self._loop.add_writer(self._socket.fileno(), self._writable)

    def _writable(self) -> None:
        self._writing = False
        self._loop.remove_writer(self._socket.fileno())
        self._flush()

    def _next_stream(self) -> int | None:
        if self._queues[0]:
            return 0
        for ahead in range(STREAMS - 1):
            stream = 1 + (self._turn + ahead) % (STREAMS - 1)
            if self._queues[stream]:
                self._turn = stream
                return stream
        return None

    def _send_fragment(self, stream: int) -> None:
        queue = self._queues[stream]
        outgoing = queue[0]
        if outgoing.given_up:
            self._socket.sendmsg([HEADER.pack(ABANDON, 0, 0)], _ANCILLARY[stream], socket.MSG_NOSIGNAL)
            queue.popleft()
            return
        self._socket.sendmsg(outgoing.cutter.fragment(self._finished), _ANCILLARY[stream], socket.MSG_NOSIGNAL)
        if outgoing.cutter.passed():
            self._finished = (self._finished + 1) % (1 << 32)
            queue.popleft()
            if not outgoing.taken.done():
                outgoing.taken.set_result(None)

    # In

    def taken(self) -> None:
        """Note that one of the messages received was read; more may come."""
        self._unread -= 1
        if not self._reading and self.ended is None:
            self._begun = dict.fromkeys(self._begun, self._loop.time())  # the pause was ours
            self._read_on()

    def _read_on(self) -> None:
        self._reading = True
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                size, ancillary, flags, _ = self._socket.recvmsg_into([self._scratch], ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self.end(_said(error))
                return
            if flags & MSG_NOTIFICATION:
                self._notified(self._scratch[:size])
            elif not size:
                self.end("the connection was closed")
            else:
                self._take(stream_of(ancillary), self._scratch[:size], whole=bool(flags & socket.MSG_EOR))
            if not self._reading or self.ended is not None:
                return

    def _take(self, stream: int, part: memoryview, *, whole: bool) -> None:
        """Take a part of a fragment: Linux may give one in several."""
        if self._part or not whole:
            self._part += part
            if len(self._part) > FRAGMENT_BYTES:
                self.end(f"sent a fragment of more than {FRAGMENT_BYTES} bytes")
                return
            if not whole:
                return
            part, self._part = memoryview(self._part), bytearray()
        if not self.has_greeted:
            self._greeted(part)
            return
        try:
            for message in self._inbox.add(stream, part):
                self.has_spoken = True
                self._begun.pop(LEFT_OUT, None)  # what is left out now is another
                if not self._discarding:
                    self._unread += 1
                    self._received(message)
        except MessageError as error:
            self.end(str(error))
        if self._limits.silent_seconds is not None:
            now = self._loop.time()
            self._begun = {place: self._begun.get(place, now) for place in self._inbox.awaited}
        if self._unread >= self._limits.messages and not self._discarding:
            self._pause()

    def _greeted(self, words: memoryview) -> None:
        if words != GREETING:
            self.end("what is there does not speak as a shardfeed server or client")
            return
        self.has_greeted = True
        self._changed()

    def _notified(self, notification: memoryview) -> None:
        if why := association_end(notification):
            self.end(why)
        elif change := path_change(notification):
            log.warning("%s: its address %s %s", self.name, *change)

    def overdue(self) -> str | None:
        """Say what the peer has let us wait for too long, by the limits; None where it is nothing."""
        if self._limits.silent_seconds is None or not self._reading:
            return None
        before = self._loop.time() - self._limits.silent_seconds
        if not self.has_spoken and self._since < before:
            return "it said nothing"
        return "it sent half a message" if min(self._begun.values(), default=before) < before else None

    # The end

    async def finish(self) -> None:
        """Send what is under way, say goodbye, and return when the peer has all of it. What it sends is not read."""
        self._discarding = True
        if not self._reading and self.ended is None:
            self._read_on()
        while self.ended is None and (waiting := self._wanted()):
            await asyncio.wait(waiting)
        if self.ended is None:
            for queue in self._queues:
                queue.clear()  # given up: nobody waits for it
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            await asyncio.shield(self._end)

    def _wanted(self) -> list[asyncio.Future[None]]:
        """What waits to be sent and was not given up."""
        return [outgoing.taken for queue in self._queues for outgoing in queue if not outgoing.taken.done()]

    def end(self, why: str, *, ours: bool = False) -> None:
        """End it at once: abort, and fail what waits to be sent. ``ours``: it was closed here. Idempotent."""
        if self.ended is not None:
            return
        self.ended = f"{self.name}: {why}" if not why.startswith("sent ") else f"{self.name} {why}"
        self._pause()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())
        abort(self._socket)
        kind = ClosedChannelError if ours else BrokenChannelError
        for queue in self._queues:
            for outgoing in queue:
                if not outgoing.taken.done():
                    outgoing.taken.set_exception(kind(self.ended))
            queue.clear()
        self._end.set_result(None)
        self._changed()


def _said(error: OSError) -> str:
    return error.strerror or os.strerror(error.errno or 0)
