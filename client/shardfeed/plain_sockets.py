"""The ZeroMQ sockets of plain streams: one for each URL, so that an error can name the one at fault."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import zmq

from shardfeed_wire.errors import ConfigError, EndpointError, TenbinError
from shardfeed_wire.exposure import check_exposure
from shardfeed_wire.plain import PlainEndpoint
from shardfeed_wire.unix_sockets import remove_stale_socket

__all__ = ["PlainSockets", "ReceivingSocket", "SendingSocket", "check_options"]

_KINDS = {"push": zmq.PUSH, "pull": zmq.PULL, "pub": zmq.XPUB, "sub": zmq.SUB}
_MAX_FRAMES = 4_096
_MAX_UPSTREAM_BYTES = 1 << 20
"""What a receiver may say to a sender: subscriptions, which are short."""

_HEARTBEAT_MS = 5_000
_HEARTBEAT_TIMEOUT_MS = 20_000


class _PlainSocket:
    """A socket bound or connected as its URL says."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: PlainEndpoint) -> None:
        self.endpoint = endpoint
        self.raw = context.socket(_KINDS[endpoint.pattern])
        self.raw.linger = 0
        self.raw.ipv6 = "[" in endpoint.address  # else ZeroMQ writes IPv4 addresses as IPv6 ones
        self.raw.heartbeat_ivl = _HEARTBEAT_MS
        self.raw.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS

    def open(self) -> None:
        """Bind or connect. Does not block. Raises EndpointError where that cannot be, with the cause."""
        address = self.endpoint.address
        try:
            if not self.endpoint.binds:
                self.raw.connect(address)
                return
            if address.startswith("ipc://"):
                remove_stale_socket(Path(address.removeprefix("ipc://")))
            self.raw.bind(f"{address[: -len(':0')]}:*" if address.endswith(":0") else address)
        except (zmq.ZMQError, OSError) as error:
            doing = "bind" if self.endpoint.binds else "connect to"
            raise EndpointError(f"cannot {doing} {self.endpoint.url}: {error}") from error

    @property
    def url(self) -> str:
        """The URL, with the port that was taken where port 0 was asked for."""
        if not self.endpoint.binds or not self.endpoint.address.endswith(":0"):
            return self.endpoint.url
        bound = self.raw.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        return f"{self.endpoint.url.removesuffix(':0')}:{bound.decode().rstrip(chr(0)).rpartition(':')[2]}"

    def close(self) -> None:
        """Close it, and remove the file of a Unix socket that was bound. Idempotent."""
        if not self.raw.closed:
            self.raw.close()
            if self.endpoint.binds and self.endpoint.address.startswith("ipc://"):
                Path(self.endpoint.address.removeprefix("ipc://")).unlink(missing_ok=True)


class SendingSocket(_PlainSocket):
    """Sends whole messages: pushed to one receiver in turn, or published to all.

    ``high_water`` bounds the messages that wait for each receiver.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: PlainEndpoint, *, high_water: int) -> None:
        super().__init__(context, endpoint)
        self.raw.sndhwm = high_water
        self.raw.maxmsgsize = _MAX_UPSTREAM_BYTES
        self._topics: set[bytes] = set()
        if endpoint.pattern == "pub":
            self.raw.xpub_nodrop = True  # so that we hear of what would be dropped
        else:
            self.raw.immediate = True  # nothing waits for a receiver that is not there

    @property
    def publishes(self) -> bool:
        """Whether messages are dropped, not kept, where a receiver is too slow."""
        return self.endpoint.pattern == "pub"

    def push(self, chunks: Sequence[Any]) -> bool:
        """Hand a message to some receiver that has room; False where none has. Does not block."""
        try:
            self.raw.send_multipart(chunks, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def publish(self, chunks: Sequence[Any]) -> bool:
        """Send a message to every receiver that has room; False where it is lost to some, or nobody subscribed.

        Does not block.
        """
        self._hear_subscriptions()
        if self.push(chunks):
            return bool(self._topics)
        self.raw.xpub_nodrop = False
        try:
            self.raw.send_multipart(chunks, zmq.NOBLOCK)
        finally:
            self.raw.xpub_nodrop = True
        return False

    def _hear_subscriptions(self) -> None:
        """Keep what is subscribed to: a prefix that somebody has, until the last who has it is gone."""
        with contextlib.suppress(zmq.Again):
            while True:
                said = self.raw.recv(zmq.NOBLOCK)
                if said[:1] == b"\1":
                    self._topics.add(said[1:])
                elif said[:1] == b"\0":
                    self._topics.discard(said[1:])


class ReceivingSocket(_PlainSocket):
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
        self.raw.rcvhwm = high_water
        self.raw.maxmsgsize = frame_bytes
        if endpoint.pattern == "sub":
            self.raw.subscribe(b"")

    def receive(self) -> tuple[str, list[memoryview]] | None:
        """Return who sent the next message, in words, and its chunks; None where there is none. Does not block.

        Raises TenbinError for a message of more frames than any batch has.
        """
        try:
            frames = self.raw.recv_multipart(zmq.NOBLOCK, copy=False)
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


S = TypeVar("S", SendingSocket, ReceivingSocket)


class PlainSockets(Generic[S]):
    """The sockets of one side, open; what they share; and a poller that knows when one may be used."""

    def __init__(
        self,
        endpoints: Iterable[PlainEndpoint],
        make: Callable[[zmq.Context[zmq.Socket[bytes]], PlainEndpoint], S],
        *,
        owner: object,
        insecure: bool,
    ) -> None:
        """Open a socket for each endpoint, until `close` or the end of the owner. Does not block.

        Raises ConfigError for an address that other machines reach, unless ``insecure``, and EndpointError
        where one cannot be used; nothing is left open then.
        """
        wanted = list(endpoints)
        for endpoint in wanted:
            check_exposure("url", endpoint.url, loopback=not endpoint.is_exposed, insecure=insecure)
        self._owner = os.getpid()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.all: list[S] = []
        self.poller = zmq.Poller()
        self._finalizer = weakref.finalize(owner, self._close)
        try:
            for endpoint in wanted:
                self.all.append(make(self._context, endpoint))
                self.all[-1].open()
                self.poller.register(self.all[-1].raw, zmq.POLLOUT if endpoint.sends else zmq.POLLIN)
        except BaseException:
            self.close()
            raise

    @property
    def urls(self) -> str:
        """Their URLs in one text, with the ports that were taken where port 0 was asked for."""
        return ", ".join(socket.url for socket in self.all)

    @property
    def is_ours(self) -> bool:
        """Whether this process opened them; a fork must leave them alone."""
        return self._owner == os.getpid()

    @property
    def closed(self) -> bool:
        """Whether they were closed."""
        return not self._finalizer.alive

    def close(self, linger: float = 0.0) -> None:
        """Wait up to ``linger`` seconds until what was sent is on its way, and close. Idempotent."""
        if self._finalizer.detach():
            self._close(linger)

    def _close(self, linger: float = 0.0) -> None:
        if not self.is_ours:
            return
        for socket in self.all:
            if not socket.raw.closed:
                socket.raw.linger = round(linger * 1_000)
                socket.close()
        self._context.term()


def check_options(*, framing: str, high_water: int, timeout: float | None) -> None:
    """Raise ConfigError for what makes no sense on either side."""
    if framing not in ("multipart", "single"):
        raise ConfigError(f"framing={framing!r}: it is 'multipart' or 'single'")
    if high_water < 1:
        raise ConfigError(f"high_water={high_water}: it is a number of batches, and at least 1")
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"timeout={timeout}: it is seconds, and above 0; None waits for ever")
