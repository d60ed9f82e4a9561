"""What a ROUTER cannot do by itself: know its connections, bound what one brings, and cut one off.

ZeroMQ takes a multipart message whole, so a peer that sends endless frames of one message fills memory
that no option bounds; it accepts connections until descriptors run out; and it has no call that ends a
connection. Here the socket's monitor says which descriptors it has accepted, the kernel says how many
bytes came in on each, and one that has to go is shut down under ZeroMQ's hands, which then tidies up as
after any connection that ends. A descriptor may be another connection's by the time it is shut: the
kernel's cookie, which no two sockets share, is compared first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import zmq
from zmq.utils.monitor import recv_monitor_message

from shardfeed_wire.complaints import Complaints
from shardfeed_wire.crowd import Share
from shardfeed_wire.curve import ClientFolder
from shardfeed_wire.transport import Limits

__all__ = ["Guard"]

_POLL_SECONDS = 0.05
_POLLED_AT_ONCE = 512
_HEARTBEAT_BYTES, _HEARTBEAT_RATE = 1_000, 100.0
"""Bytes, and bytes a second, that are no part of a message: ZeroMQ's heartbeats, which CURVE makes larger."""

_MOST_PEERS = 65_536

_CLIENTS_SECONDS = 1.0
_REMOVED = "its key was taken out of the folder of clients"

_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

_FRAME_BYTES, _CURVE_FRAME_BYTES = 9, 42
"""What ZMTP (RFC 23) and CURVE (RFC 26) add to a frame at most: in short ones it may be 7 less."""

_SO_COOKIE = 57
_BYTES_RECEIVED = 128
"""Offset in struct tcp_info of tcpi_bytes_received, a uint64."""

_FAILURES = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it speaks without CURVE; give it a client's key file",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it has another server's public key, or tampers; give it this server's key",
}
_GAVE_UP = "it gave the handshake up: it went away, or speaks without CURVE and wants a client's key file"


@dataclass(slots=True, eq=False)
class _Connection:
    descriptor: int
    cookie: bytes
    host: str | None
    """The far end's, None where it is on a Unix socket."""
    address: str
    since: float
    peer: bytes | None = None
    taken: int = 0
    """The bytes of whole messages that came since the last look."""
    received: int = 0
    """The bytes that had come when one last had, without those of a message that had begun by then."""
    whole: float = 0.0
    """When that was."""
    begun: float | None = None
    """Since when more has come than heartbeats; None while it has not."""
    suspected: bool = False


class Guard:
    """The connections of one listening ROUTER, known by its socket monitor.

    Of ``limits`` it holds peers to those that no ROUTER knows: how long one may say nothing, and over TCP how
    much it may send, and for how long, without a whole message arriving. ``clients``, where given, are those that are
    let in: who is none of them any more has to go.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        limits: Limits,
        *,
        clients: ClientFolder | None = None,
    ) -> None:
        """Begin to watch, in the running event loop; before the socket is bound, so that nobody is missed."""
        self.url = ""
        self._router, self._limits, self._clients = router, limits, clients
        # Half, for what has come whole and waits to be looked at is taken for a message that has begun, too.
        self._most_carried = (limits.message_bytes or 2 * limits.frame_bytes) // 2
        self._loop = asyncio.get_running_loop()
        self._by_descriptor: dict[int, _Connection] = {}
        self._silent: OrderedDict[int, _Connection] = OrderedDict()
        self._share = Share(self._cut_silent)
        self._peers: OrderedDict[bytes, tuple[_Connection | None, str | None]] = OrderedDict()
        self._failure = ""
        self._complaints = Complaints()
        self._next_looked = 0
        address = f"inproc://monitor-{os.urandom(8).hex()}"
        router.monitor(address, _EVENTS)
        self._monitor = router.context.socket(zmq.PAIR)
        self._monitor.linger = 0
        self._monitor.rcvhwm = 0  # ZeroMQ's own thread waits where it cannot tell, and closing would wait for it
        self._monitor.connect(address)
        descriptor = self._monitor.getsockopt(zmq.FD)
        assert isinstance(descriptor, int)
        self._descriptor = descriptor
        self._loop.add_reader(descriptor, self._events)
        self._timer = self._loop.call_later(_POLL_SECONDS, self._look)
        self._asked_clients = time.monotonic()
        self._events()  # the descriptor tells of nothing before somebody has looked

    def close(self) -> None:
        """Watch no more; to be called before the socket is closed."""
        self._share.close()
        self._timer.cancel()
        self._loop.remove_reader(self._descriptor)
        self._router.disable_monitor()
        self._monitor.close()

    # Peers

    def arrived(self, peer: bytes, frames: Sequence[zmq.Frame]) -> bool:
        """Note a peer's whole message, of one frame or more; say whether the peer may go on."""
        known = self._peers.get(peer)
        if known is None:
            self._events()
            connection = self._connection_of(frames[0])
            if not peer.startswith(b"\0"):
                # It chose its name itself, and might choose that of a peer whose answers are still to come.
                self._complaints.say("named", f"{self.url}: cut off a peer that sets its own ZeroMQ identity")
                self._cut(connection)
                return False
            known = self._peers[peer] = (connection, _property(frames[0], "User-Id"))
            if len(self._peers) > _MOST_PEERS:
                self._peers.popitem(last=False)
            if connection is not None:
                connection.peer = peer
                self._silent.pop(connection.descriptor, None)
                self._count()
        connection, user = known
        if connection is not None:
            more = _FRAME_BYTES if self._clients is None else _CURVE_FRAME_BYTES
            connection.taken += sum(len(frame) + more for frame in frames)
        if self._clients is not None and user not in self._clients.clients():
            self.drop(peer, _REMOVED)
            return False
        return True

    def _connection_of(self, frame: zmq.Frame) -> _Connection | None:
        """Return the connection that a peer's first message came on; None where it has ended.

        Its descriptor may have become another's already; from another address that one is not blamed.
        """
        connection = self._by_descriptor.get(int(_property(frame, "__fd") or -1))
        address = (_property(frame, "Peer-Address") or "").partition("%")[0]
        if connection is not None and connection.host not in (None, address):
            return None
        return connection

    def user(self, peer: bytes) -> str | None:
        """Return the public key that a peer showed, None where it had to show none."""
        return self._peers.get(peer, (None, None))[1]

    def gone(self, peer: bytes) -> bool:
        """Say whether a peer's connection has ended."""
        return self._peers.get(peer, (None, None))[0] is None

    def drop(self, peer: bytes, reason: str) -> None:
        """End a peer's connection, and say why in the log."""
        connection = self._peers.get(peer, (None, None))[0]
        if connection is not None:
            self._complaints.say(reason, f"{self.url}: cut off {connection.address}: {reason}")
            self._cut(connection)

    # Connections

    def _events(self) -> None:
        with contextlib.suppress(zmq.ZMQError):
            while True:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
                match event["event"]:
                    case zmq.EVENT_ACCEPTED:
                        self._accepted(event["value"])
                    case zmq.EVENT_DISCONNECTED:
                        self._disconnected(event["value"])
                    case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                        self._failure = _FAILURES.get(event["value"], "")
                    case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                        self._failure = _GAVE_UP

    def _accepted(self, descriptor: int) -> None:
        facts = _cookie_and_address(descriptor)
        if facts is None:
            return  # gone already
        connection = _Connection(descriptor, *facts, time.monotonic())
        self._disconnected(descriptor)  # where its end was not told
        self._by_descriptor[descriptor] = self._silent[descriptor] = connection
        self._count()
        if self._share.make_room():
            self._complaints.say(
                "many",
                f"{self.url}: {len(self._by_descriptor) - 1:,} connections, and with those of other listeners as many "
                "as fit the descriptors that this process may have (`ulimit -n`); cut off one that has said nothing",
            )

    def _disconnected(self, descriptor: int) -> None:
        connection = self._by_descriptor.pop(descriptor, None)
        if connection is not None:
            self._silent.pop(descriptor, None)
            self._count()
            if (known := self._peers.get(connection.peer or b"")) is not None and connection.peer is not None:
                # Messages of its may still wait, and its descriptor may be another's by then: it is remembered as gone.
                self._peers[connection.peer] = (None, known[1])
                self._peers.move_to_end(connection.peer, last=False)
        failure, self._failure = self._failure, ""
        if failure and self._clients is not None:
            address = connection.address if connection is not None else "a client"
            self._complaints.say(failure, f"{self.url}: refused {address}: {failure}")

    def _count(self) -> None:
        self._share.connections, self._share.silent = len(self._by_descriptor), len(self._silent)

    def _cut_silent(self) -> None:
        self._cut(next(iter(self._silent.values()), None))

    def _cut(self, connection: _Connection | None) -> None:
        """Shut a connection down, if the descriptor is still its own; the monitor then says that it ended."""
        if connection is None:
            return
        self._silent.pop(connection.descriptor, None)
        self._count()
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.descriptor)) as ours:
            if ours.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8) == connection.cookie:
                # So that ZeroMQ's close resets it: after a plain end the peer might wait for room to send for ever.
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                ours.shutdown(socket.SHUT_RDWR)

    def _look(self) -> None:
        """Look after some connections: who brings too much, and who says nothing."""
        self._events()
        now, suspected, patience = time.monotonic(), False, self._limits.silent_seconds
        if self._limits.message_bytes is not None or patience is not None:
            if self._next_looked >= len(self._by_descriptor):
                self._next_looked = 0
            looked_at = islice(self._by_descriptor.values(), self._next_looked, self._next_looked + _POLLED_AT_ONCE)
            self._next_looked += _POLLED_AT_ONCE
            for connection in list(looked_at):
                suspected |= self._weigh(connection, now)
        while patience is not None and self._silent and now - next(iter(self._silent.values())).since > patience:
            self._cut_silent()
        if self._clients is not None and now - self._asked_clients >= _CLIENTS_SECONDS:
            self._asked_clients = now
            allowed = self._clients.clients()
            for peer in [peer for peer, (_, user) in self._peers.items() if user not in allowed]:
                self.drop(peer, _REMOVED)
        self._timer = self._loop.call_later(_POLL_SECONDS / 4 if suspected else _POLL_SECONDS, self._look)

    def _weigh(self, connection: _Connection, now: float) -> bool:
        """Cut a connection off that brings bytes and no message; say whether it is under suspicion."""
        received = _bytes_received(connection.descriptor)
        if received is None:
            return False
        size = max(0, received - connection.received - connection.taken)
        if connection.taken:
            # What has come beside whole messages is the next one's, unless it is as little as heartbeats are.
            begun = 0 if size <= _heartbeats(connection, now) else min(size, self._most_carried)
            connection.received, connection.whole, connection.begun = received - begun, now, None
            connection.taken, connection.suspected = 0, False
            return False
        wrong = self._what_is_wrong(connection, size, now)
        if wrong and not connection.suspected:  # its message may be here and not yet looked at
            connection.suspected = True
            return True
        if wrong:
            self._complaints.say(wrong, f"{self.url}: cut off {connection.address}: {received:,} bytes {wrong}")
            self._cut(connection)
        return False

    def _what_is_wrong(self, connection: _Connection, size: int, now: float) -> str | None:
        """Say what is wrong with so many bytes since a connection's last whole message, if something is."""
        if self._limits.message_bytes is not None and size > self._limits.message_bytes:
            return "without a whole message"
        if size <= _heartbeats(connection, now):
            return None
        if connection.begun is None:
            connection.begun = now
        patience = self._limits.silent_seconds
        return "and half a message for too long" if patience is not None and now - connection.begun > patience else None


def _heartbeats(connection: _Connection, now: float) -> float:
    """Return the bytes that may have come since a connection's last whole message, and be part of none."""
    return _HEARTBEAT_BYTES + _HEARTBEAT_RATE * (now - (connection.whole or connection.since))


def _property(frame: zmq.Frame, name: str) -> str | None:
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return None


@contextlib.contextmanager
def _borrowed(descriptor: int, family: int = socket.AF_INET) -> Iterator[socket.socket]:
    """Ask ZeroMQ's descriptor something, and leave it open. Raises OSError where it is closed already.

    Options can be asked for whatever ``family`` is said to be; an address is cut to the length of that family's. With
    -1 it is looked up, which takes some calls of the kernel.
    """
    ours = socket.socket(family, socket.SOCK_STREAM, 0, fileno=descriptor)
    try:
        yield ours
    finally:
        ours.detach()


def _cookie_and_address(descriptor: int) -> tuple[bytes, str | None, str] | None:
    """Return what tells a socket from every other, and its far end: host, and in words. None where it is closed."""
    try:
        with _borrowed(descriptor, family=-1) as ours:
            name = ours.getpeername()
            cookie = ours.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
            if not isinstance(name, tuple):
                return cookie, None, "a local peer"
            return cookie, name[0].partition("%")[0], f"{name[0]}:{name[1]}"
    except OSError:
        return None


def _bytes_received(descriptor: int) -> int | None:
    """Return what the kernel received on a TCP connection; None for another kind of socket, or none at all."""
    try:
        with _borrowed(descriptor) as ours:
            facts = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
    except OSError:
        return None
    return int(struct.unpack_from("<Q", facts, _BYTES_RECEIVED)[0]) if len(facts) == _BYTES_RECEIVED + 8 else None
