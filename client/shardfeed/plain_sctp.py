"""The SCTP sockets of plain streams: one batch a message, for the documented ``tenbin.sctp_send`` and ``sctp_recv``.

The receiver binds. A sender opens an association for each batch: ``sctp_recv`` on a listening one-to-one socket
accepts one, reads one message and closes it, and what followed on it would be lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import zmq

from shardfeed.plain_sockets import ReceivingSocket, SendingSocket
from shardfeed_wire.binding import cannot_bind
from shardfeed_wire.complaints import Complaints
from shardfeed_wire.endpoint import parse_endpoint
from shardfeed_wire.errors import ConfigError, EndpointError, TenbinError
from shardfeed_wire.plain import PlainEndpoint
from shardfeed_wire.sctp_sockets import (
    ANCILLARY_BYTES,
    MSG_NOTIFICATION,
    abort,
    association_end,
    bind,
    has_room_to_send,
    is_dry,
    look_up,
    open_socket,
    start_connecting,
    tell_when_dry,
)
from shardfeed_wire.tenbin import frame_chunk

__all__ = ["RETRY_SECONDS", "SctpReceiver", "SctpSender"]

RETRY_SECONDS = 0.1
"""Between two attempts to reach a receiver."""

_MOST_SENDERS = 256
"""Associations of a receiver at a time; more wait to be accepted, and then are refused."""

_SCRATCH_BYTES = 1 << 20


class SctpSender(SendingSocket):
    """Sends whole messages to who binds the address, each over an association of its own, one at a time.

    One is under way until the receiver's kernel has all of it. So a receiver that reads none holds no more
    than its socket's buffers and the associations that it lets wait.
    """

    def __init__(self, endpoint: PlainEndpoint) -> None:
        super().__init__(endpoint)
        self._epoll = select.epoll()
        self._socket: socket.socket | None = None
        self._under_way = False
        self._not_before = 0.0
        self._scratch = memoryview(bytearray(4_096))
        self.lost = 0
        self._complaints = Complaints()

    def open(self) -> None:
        """See `PlainSocket.open`."""
        try:
            family, _ = look_up(parse_endpoint(self.endpoint.address))
            open_socket(family, self.url).close()
        except OSError as error:
            raise EndpointError(f"cannot connect to {self.url}: {error.strerror or error}") from error

    @property
    def url(self) -> str:
        """See `PlainSocket.url`."""
        return self.endpoint.url

    def register(self, poller: zmq.Poller) -> None:
        """See `PlainSocket.register`."""
        poller.register(self._epoll, zmq.POLLIN)

    def push(self, chunks: Sequence[Any]) -> bool:
        """Hand a message to the receiver where it is there and has the one before; see `SendingSocket.push`.

        Raises ConfigError for a message that is larger than the kernel lets a socket send.
        """
        if not self._has_settled():
            return False
        parts = list(chunks) if len(chunks) == 1 else [part for chunk in chunks for part in frame_chunk(chunk)]
        size = sum(memoryview(part).nbytes for part in parts)
        try:
            if self._socket is None and not self._begin():
                return False
            assert self._socket is not None
            if not _is_connected(self._socket):
                return False
            if not has_room_to_send(self._socket, size):
                raise self._too_large(size)
            if self._events(self._socket) in ("ended", "lost"):
                raise ConnectionResetError
            self._socket.sendmsg([b"".join(parts)], [], socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise self._too_large(size) from error
            self._give_up()
            return False
        self._under_way = True
        self._epoll.modify(self._socket, select.EPOLLIN)
        return True

    def close(self, linger: float) -> None:
        """See `PlainSocket.close`."""
        until = time.monotonic() + linger
        while not self._has_settled() and (left := until - time.monotonic()) > 0:
            self._epoll.poll(left)
        if self._under_way:
            self._lose("the sender was closed before it had arrived")
        if self._socket is not None:
            self._finish(self._socket)
        self._epoll.close()

    def _begin(self) -> bool:
        """Start an association, unless an attempt failed a moment ago. Raises OSError."""
        if time.monotonic() < self._not_before:
            return False
        family, addresses = look_up(parse_endpoint(self.endpoint.address))
        self._socket = open_socket(family, self.url)
        self._epoll.register(self._socket, select.EPOLLOUT)
        tell_when_dry(self._socket)
        start_connecting(self._socket, addresses)
        return True

    def _too_large(self, size: int) -> ConfigError:
        return ConfigError(
            f"{self.url}: a batch of {size} bytes is one SCTP message, which must fit into the socket's send "
            f"buffer, and the kernel allows none so large; raise its limit (sysctl -w net.core.wmem_max={size}), or "
            "send smaller batches"
        )

    def _has_settled(self) -> bool:
        """Hear what became of the message under way; whether there is none any more."""
        if self._under_way:
            assert self._socket is not None
            try:
                told = self._events(self._socket)
            except OSError as error:
                self._lose(error.strerror or str(error))
                return True
            if told == "":
                return False
            if told == "lost":
                self._lose("its receiver went")
                return True
            self._under_way = False
            self._finish(self._socket)
        return True

    def _events(self, associated: socket.socket) -> str:
        """Read what the kernel tells: ``"arrived"``, ``"ended"`` in order, ``"lost"``, or nothing yet: ``""``."""
        while True:
            try:
                size, _, flags, _ = associated.recvmsg_into([self._scratch], ANCILLARY_BYTES)
            except BlockingIOError:
                return ""
            if not size:
                return "ended"
            if flags & MSG_NOTIFICATION:
                if is_dry(self._scratch[:size]):
                    return "arrived"
                if (end := association_end(self._scratch[:size])) is not None:
                    return "ended" if end == "the connection was closed" else "lost"

    def _lose(self, why: str) -> None:
        self._under_way = False
        self.lost += 1
        self._complaints.say("lost", f"{self.url}: a batch under way was lost: {why}")
        self._give_up()

    def _give_up(self) -> None:
        """End the association, if there is one, at once, and let a moment pass before the next."""
        self._not_before = time.monotonic() + RETRY_SECONDS
        if self._socket is not None:
            self._epoll.unregister(self._socket)
            abort(self._socket)
            self._socket = None

    def _finish(self, associated: socket.socket) -> None:
        """End an association in order: its message has arrived, or none was sent."""
        self._epoll.unregister(associated)
        with contextlib.suppress(OSError):  # not connected yet, or not any more
            associated.shutdown(socket.SHUT_RDWR)
        associated.close()
        self._socket = None


@dataclass(slots=True, eq=False)
class _Sender:
    """An association that was accepted."""

    socket: socket.socket
    name: str
    part: bytearray = field(default_factory=bytearray)
    """What came of a message that has not ended."""


class SctpReceiver(ReceivingSocket):
    """Receives whole messages from all who send to the address that it binds.

    ``high_water`` bounds the associations that wait to be accepted. ``message_bytes`` bounds a message, and what
    messages that have not ended hold together: who exceeds that is cut off.
    """

    def __init__(self, endpoint: PlainEndpoint, *, high_water: int, message_bytes: int) -> None:
        super().__init__(endpoint)
        self._backlog, self._message_bytes = high_water, message_bytes
        self._epoll = select.epoll()
        self._listener: socket.socket | None = None
        self._port = 0
        self._senders: list[_Sender] = []
        """Those accepted; who was heard last comes last."""
        self._unfinished = 0
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._complaints = Complaints()

    def open(self) -> None:
        """See `PlainSocket.open`."""
        try:
            family, addresses = look_up(parse_endpoint(self.endpoint.address))
            self._listener = open_socket(family, self.endpoint.url)
            self._port = bind(self._listener, addresses)
            self._listener.listen(self._backlog)
        except OSError as error:
            raise cannot_bind(f"cannot bind {self.endpoint.url}", error.errno, error.strerror or error) from error
        self._epoll.register(self._listener, select.EPOLLIN)

    @property
    def url(self) -> str:
        """See `PlainSocket.url`."""
        endpoint = parse_endpoint(self.endpoint.address)
        return self.endpoint.url if endpoint.port else str(replace(endpoint, port=self._port))

    def register(self, poller: zmq.Poller) -> None:
        """See `PlainSocket.register`."""
        poller.register(self._epoll, zmq.POLLIN)

    def receive(self) -> tuple[str, list[memoryview]] | None:
        """See `ReceivingSocket.receive`."""
        accepted = True
        while accepted:
            accepted = self._accept()
            for sender in list(self._senders):
                message = self._read(sender)
                if message is not None:
                    self._senders.remove(sender)
                    self._senders.append(sender)
                    return sender.name, [memoryview(message)]
        return None

    def close(self, linger: float) -> None:
        """See `PlainSocket.close`."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for sender in self._senders:
            abort(sender.socket)
        self._senders.clear()
        self._epoll.close()

    def _accept(self) -> bool:
        """Accept one association, in the order in which they came; False where there is none, or no room for it."""
        assert self._listener is not None
        if len(self._senders) >= _MOST_SENDERS:
            return False
        try:
            accepted, address = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise EndpointError(f"{self.url}: a sender cannot be let in: {error.strerror}") from error
            return False
        accepted.setblocking(False)
        self._senders.append(_Sender(accepted, f"{self.url} (from {address[0]})"))
        self._epoll.register(accepted, select.EPOLLIN)
        if len(self._senders) == _MOST_SENDERS:
            self._epoll.modify(self._listener, 0)
        return True

    def _read(self, sender: _Sender) -> bytearray | None:
        """Return the association's next message if all of it is there. Raises TenbinError where it is too large."""
        while True:
            try:
                size, _, flags, _ = sender.socket.recvmsg_into([self._scratch], ANCILLARY_BYTES)
            except BlockingIOError:
                return None
            except OSError as error:
                self._drop(sender, error.strerror or os.strerror(error.errno or 0))
                return None
            if flags & MSG_NOTIFICATION:
                if association_end(self._scratch[:size]) is not None:
                    self._drop(sender, "its sender went")
                    return None
                continue
            if not size:
                self._drop(sender, "its sender went")
                return None
            if self._unfinished + size > self._message_bytes:
                self._drop(sender, "it is too large")
                raise TenbinError(
                    f"{sender.name} was cut off: it sent a message of more than the {self._message_bytes:,} bytes that "
                    "may wait for their end; raise frame_bytes, or let it send smaller batches"
                )
            sender.part += self._scratch[:size]
            self._unfinished += size
            if flags & socket.MSG_EOR:
                message, sender.part = sender.part, bytearray()
                self._unfinished -= len(message)
                return message

    def _drop(self, sender: _Sender, why: str) -> None:
        if sender.part:
            self._complaints.say("part", f"{sender.name}: a message ended before its end: {why}")
        self._unfinished -= len(sender.part)
        self._senders.remove(sender)
        self._epoll.unregister(sender.socket)
        abort(sender.socket)
        assert self._listener is not None
        self._epoll.modify(self._listener, select.EPOLLIN)


def _is_connected(begun: socket.socket) -> bool:
    """Say whether an association that was started stands. Raises OSError where it failed."""
    failed = begun.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, os.strerror(failed))
    poll = select.poll()
    poll.register(begun, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))
