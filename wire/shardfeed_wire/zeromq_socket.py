"""A ZeroMQ socket in an asyncio loop: waiting for input, and knowing when the memory of a message is free again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import zmq

from shardfeed_wire.errors import ClosedChannelError
from shardfeed_wire.transport import Limits
from shardfeed_wire.zeromq_watched import Watched

__all__ = ["Socket"]

_COPY_BELOW = 65_536
"""Smaller frames are cheaper to copy than to track."""

_POLL_SENT = 0.002
_POLL_WRITABLE = 0.005

_HEARTBEAT_MS = 5_000
_HEARTBEAT_TIMEOUT_MS = 20_000

_NOBLOCK, _SNDMORE, _POLLIN = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.POLLIN)
"""Numbers: what Python's flags cost to be joined is more than what ZeroMQ does with them."""

_NO_MORE: Final = _NOBLOCK
_MORE: Final = _NOBLOCK | _SNDMORE


class Socket:
    """A ZeroMQ socket whose messages one task receives and any may send. To be closed in the loop that it was made in.

    ``raw`` is ZeroMQ's own.
    """

    def __init__(self, socket: zmq.Socket[bytes], url: str, limits: Limits) -> None:
        """Set what every socket of ours has set before it is bound or connected."""
        self.raw = socket
        socket.linger = 0
        socket.maxmsgsize = limits.frame_bytes
        socket.rcvhwm = limits.messages
        socket.sndhwm = limits.messages
        socket.ipv6 = "[" in url  # else ZeroMQ writes IPv4 addresses as IPv6 ones
        socket.heartbeat_ivl = _HEARTBEAT_MS
        socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
        self._waiter: asyncio.Future[None] | None = None
        self._watched = Watched()
        self._unsent: list[tuple[zmq.MessageTracker, asyncio.Future[None]]] = []
        self._poll: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Let the receiver look again: a send may have swallowed the signal meant for it."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def input(self) -> list[zmq.Frame] | None:
        """Return the next message's frames, None where there is none; raises zmq.ZMQError once the socket is closed."""
        raw = self.raw
        if not self._events() & _POLLIN:
            return None
        try:
            frames = [raw.recv(_NOBLOCK, copy=False)]
        except zmq.Again:
            return None
        while frames[-1].more:
            frames.append(raw.recv(_NOBLOCK, copy=False))
        return frames

    async def change(self) -> None:
        """Block until the socket's state may have changed since `input` found nothing."""
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        if not self._watched.started:
            self._watched.start(self.raw, self._signalled)
        try:
            await waiter
        finally:
            self._waiter = None

    def _signalled(self) -> None:
        # The descriptor is readable until somebody asks for the events, whether or not there is a message.
        if self._events() & _POLLIN:
            self.wake()

    def _events(self) -> int:
        events = self.raw.getsockopt(zmq.EVENTS)
        assert isinstance(events, int)
        return events

    def offer(self, chunks: Sequence[Any]) -> asyncio.Future[None] | None:
        """Send frames; return a future that is done when their memory is free, None where it is already.

        Does not block. Raises zmq.Again where the mark is reached, and zmq.ZMQError for what ZeroMQ refuses otherwise.
        """
        raw, last, tracker = self.raw, len(chunks) - 1, None
        if raw.closed:
            raise ClosedChannelError("the channel was closed while a message waited to be sent")
        for number, chunk in enumerate(chunks):
            flags = _MORE if number < last else _NO_MORE
            if type(chunk) is bytes and len(chunk) < _COPY_BELOW:
                raw.send(chunk, flags)
            elif memoryview(chunk).nbytes < _COPY_BELOW:
                raw.send(bytes(chunk), flags)
            else:
                tracker = raw.send(chunk, flags, copy=False, track=True)
        self.wake()
        if tracker is None:
            return None
        # ZeroMQ is through with frames in their order, so the last one's memory is the last to be free.
        loop = asyncio.get_running_loop()
        free = loop.create_future()
        self._unsent.append((tracker, free))
        if self._poll is None:
            self._poll = loop.call_later(_POLL_SENT, self._check_unsent)
        return free

    async def output(self, chunks: Sequence[Any]) -> None:
        """Send frames, waiting while the mark is reached, and return when their memory is free."""
        while True:
            try:
                free = self.offer(chunks)
            except zmq.Again:
                self.wake()
                await asyncio.sleep(_POLL_WRITABLE)
                continue
            if free is not None:
                await free
            return

    def _check_unsent(self) -> None:
        # ZeroMQ frees what a peer that is gone has not read only when somebody asks something of the socket.
        self._signalled()
        waiting = []
        for tracker, free in self._unsent:
            if free.cancelled():
                continue
            if tracker.done:
                free.set_result(None)
            else:
                waiting.append((tracker, free))
        self._unsent = waiting
        self._poll = asyncio.get_running_loop().call_later(_POLL_SENT, self._check_unsent) if waiting else None

    async def flushed(self) -> None:
        """Block until no frame is unsent."""
        await asyncio.gather(*(asyncio.shield(free) for _, free in self._unsent), return_exceptions=True)

    def close(self) -> None:
        """Close the socket and wake whoever waits on it."""
        if self._poll is not None:
            self._poll.cancel()
        for _, free in self._unsent:
            if not free.done():
                free.set_exception(ClosedChannelError("the channel was closed while a message was being sent"))
        self._unsent.clear()
        self.wake()
        self._watched.stop()
        self.raw.close()
