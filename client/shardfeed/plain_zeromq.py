"""The ZeroMQ sockets of plain streams."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq

from shardfeed.plain_sockets import PlainSocket, ReceivingSocket, SendingSocket
from shardfeed_wire.binding import cannot_bind
from shardfeed_wire.errors import EndpointError, TenbinError
from shardfeed_wire.freed_memory import keep_freed_memory
from shardfeed_wire.plain import PlainEndpoint
from shardfeed_wire.unix_sockets import closed_to_others, remove_stale_socket

__all__ = ["ZeroMQReceiver", "ZeroMQSender"]

_KINDS = {"push": zmq.PUSH, "pull": zmq.PULL, "pub": zmq.XPUB, "sub": zmq.SUB}
_MAX_FRAMES = 4_096
_MAX_UPSTREAM_BYTES = 1 << 20
"""What a receiver may say to a sender: subscriptions, which are short."""

_HEARTBEAT_MS = 5_000
_HEARTBEAT_TIMEOUT_MS = 20_000


class _ZeroMQSocket(PlainSocket):
    """A socket bound or connected as its URL says."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: PlainEndpoint) -> None:
        super().__init__(endpoint)
        self._bound = False
        self._raw = context.socket(_KINDS[endpoint.pattern])
        self._raw.linger = 0
        self._raw.ipv6 = "[" in endpoint.address  # else ZeroMQ writes IPv4 addresses as IPv6 ones
        self._raw.heartbeat_ivl = _HEARTBEAT_MS
        self._raw.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS

    def open(self) -> None:
        """See `PlainSocket.open`."""
        address = self.endpoint.address
        try:
            if not self.endpoint.binds:
                self._raw.connect(address)
                return
            if address.startswith("ipc://"):
                remove_stale_socket(Path(address.removeprefix("ipc://")))
            with closed_to_others():
                self._raw.bind(f"{address[: -len(':0')]}:*" if address.endswith(":0") else address)
            self._bound = True
        except (zmq.ZMQError, OSError) as error:
            if self.endpoint.binds:
                raise cannot_bind(f"cannot bind {self.endpoint.url}", error.errno, error) from error
            raise EndpointError(f"cannot connect to {self.endpoint.url}: {error}") from error

    @property
    def url(self) -> str:
        """See `PlainSocket.url`."""
        if not self.endpoint.binds or not self.endpoint.address.endswith(":0"):
            return self.endpoint.url
        bound = self._raw.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        return f"{self.endpoint.url.removesuffix(':0')}:{bound.decode().rstrip(chr(0)).rpartition(':')[2]}"

    def register(self, poller: zmq.Poller) -> None:
        """See `PlainSocket.register`."""
        poller.register(self._raw, zmq.POLLOUT if self.endpoint.sends else zmq.POLLIN)

    def close(self, linger: float) -> None:
        """See `PlainSocket.close`."""
        if not self._raw.closed:
            self._raw.close(round(linger * 1_000))
            # What it did not bind is a file, or another process's socket.
            if self._bound and self.endpoint.address.startswith("ipc://"):
                Path(self.endpoint.address.removeprefix("ipc://")).unlink(missing_ok=True)


class ZeroMQSender(_ZeroMQSocket, SendingSocket):
    """Sends whole messages: pushed to one receiver in turn, or published to all.

    ``high_water`` bounds the messages that wait for each receiver.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: PlainEndpoint, *, high_water: int) -> None:
        super().__init__(context, endpoint)
        self._raw.sndhwm = high_water
        self._raw.maxmsgsize = _MAX_UPSTREAM_BYTES
        self._topics: set[bytes] = set()
        if endpoint.pattern == "pub":
            self._raw.xpub_nodrop = True  # so that we hear of what would be dropped
        else:
            self._raw.immediate = True  # nothing waits for a receiver that is not there

    def push(self, chunks: Sequence[Any]) -> bool:
        """See `SendingSocket.push`."""
        try:
            self._raw.send_multipart(chunks, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def publish(self, chunks: Sequence[Any]) -> bool:
        """See `SendingSocket.publish`."""
        self._hear_subscriptions()
        if self.push(chunks):
            return bool(self._topics)
        self._raw.xpub_nodrop = False
        try:
            self._raw.send_multipart(chunks, zmq.NOBLOCK)
        finally:
            self._raw.xpub_nodrop = True
        return False

    def _hear_subscriptions(self) -> None:
        """Keep what is subscribed to: a prefix that somebody has, until the last who has it is gone."""
        with contextlib.suppress(zmq.Again):
            while True:
                said = self._raw.recv(zmq.NOBLOCK)
                if said[:1] == b"\1":
                    self._topics.add(said[1:])
                elif said[:1] == b"\0":
                    self._topics.discard(said[1:])


class ZeroMQReceiver(_ZeroMQSocket, ReceivingSocket):
    """Receives whole messages, from all who send to it in turn.

    ``high_water`` bounds the messages of each sender that wait unread, ``frame_bytes`` one frame: a
    sender of a larger one is disconnected.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: PlainEndpoint,
        *,
        high_water: int,
        frame_bytes: int,
    ) -> None:
        super().__init__(context, endpoint)
        keep_freed_memory()
        self._raw.rcvhwm = high_water
        self._raw.maxmsgsize = frame_bytes
        if endpoint.pattern == "sub":
            self._raw.subscribe(b"")

    def receive(self) -> tuple[str, list[memoryview]] | None:
        """See `ReceivingSocket.receive`."""
        try:
            frames = self._raw.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        sender = f"{self.url}{_peer(frames[0])}"
        if len(frames) > _MAX_FRAMES:
            raise TenbinError(f"{sender}: a message of {len(frames):,} frames; {_MAX_FRAMES:,} are the most taken")
        return sender, [frame.buffer for frame in frames]


def _peer(frame: zmq.Frame) -> str:
    """Say from which machine a frame came, where the carrier knows."""
    try:
        address = frame.get("Peer-Address")
    except zmq.ZMQError:
        return ""
    return f" (from {address})" if address else ""
