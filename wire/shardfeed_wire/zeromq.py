"""ZeroMQ as a transport: ROUTER on the server, one DEALER for each server on the client, over TCP or a Unix socket.

ZeroMQ alone bounds messages, not bytes, and reconnects without a word. So here a DEALER never
reconnects by itself: its socket monitor says when the connection ends, and that ends the channel.
A ROUTER is mandatory (it refuses instead of dropping), its high-water mark is set before it binds,
and a message counts as unsent until ZeroMQ's own tracker says that its memory is free again. What else
it needs against peers that mean harm is in `zeromq_guard`; with CURVE keys `zap` says who comes in.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from shardfeed_wire.binding import cannot_bind
from shardfeed_wire.curve import ClientKeys, Keys, ServerKeys
from shardfeed_wire.endpoint import parse_endpoint
from shardfeed_wire.errors import BrokenChannelError, ClosedChannelError, EndpointError
from shardfeed_wire.freed_memory import keep_freed_memory
from shardfeed_wire.transport import Channel, Limits, Listener, Transport, register
from shardfeed_wire.unix_sockets import closed_to_others, remove_stale_socket
from shardfeed_wire.zap import Doorkeeper
from shardfeed_wire.zeromq_ends import ENDS, why_no_handshake
from shardfeed_wire.zeromq_guard import Guard
from shardfeed_wire.zeromq_socket import Socket
from shardfeed_wire.zeromq_watched import Watched, unbind

__all__ = ["ZeroMQ"]

_NEVER_MS = 2**31 - 1
"""Not -1: with that, ZeroMQ throws away what has arrived as soon as the connection ends."""

_HANDSHAKE_MS = 10_000

_LOOPBACK_BUFFER = 256 << 10
"""Bytes of a socket's send buffer where all clients are on this machine. Left to itself it grows to megabytes, for
networks on which much is under way; here that only means that the receiver finds nothing in the processor's cache."""


class _Channel(Channel):
    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], url: str, limits: Limits, keys: Keys | None = None
    ) -> None:
        self._url, self._limits, self._keys = url, limits, keys
        raw = context.socket(zmq.DEALER)
        self._socket = Socket(raw, url, limits)
        if isinstance(keys, ClientKeys):
            raw.curve_publickey, raw.curve_secretkey, raw.curve_serverkey = keys.public, keys.secret, keys.server
        raw.reconnect_ivl = _NEVER_MS
        try:
            # An address of its own: where this fails, the usual one is not free at once for the next socket.
            self._monitor = raw.get_monitor_socket(addr=f"inproc://monitor-{os.urandom(8).hex()}")
        except zmq.ZMQError:
            raw.close()  # else the context waits for it for ever
            raise
        self._monitored = Watched()
        self._events: asyncio.Task[None] | None = None
        self._connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._broken: str | None = None
        self._end: zmq.Event | None = None
        self._closed = False

    async def connect(self) -> None:
        try:
            self._events = asyncio.create_task(self._watch())
            self._socket.raw.connect(self._url)
            await self._connected
        except zmq.ZMQError as error:
            self.close()
            raise EndpointError(f"endpoint {self._url!r} cannot be used: {error}") from error
        except BrokenChannelError:
            self.close()
            if self._end is None or self._end in (zmq.Event.CLOSED, zmq.Event.CONNECT_RETRIED):
                raise
            why = await why_no_handshake(self._url, self._end, self._keys)
            raise BrokenChannelError(f"{self._url}: {why}") from None
        except BaseException:
            self.close()
            raise

    async def _watch(self) -> None:
        """Follow the socket monitor until it reports the connection's end."""
        changed = asyncio.Event()
        self._monitored.start(self._monitor, changed.set)
        try:
            while self._broken is None:
                while self._monitor.poll(0) and self._broken is None:
                    self._note(zmq.Event(recv_monitor_message(self._monitor)["event"]))
                if self._broken is None:
                    await changed.wait()
                    changed.clear()
        finally:
            self._monitored.stop()

    def _note(self, event: zmq.Event) -> None:
        if event == zmq.Event.HANDSHAKE_SUCCEEDED and not self._connected.done():
            self._connected.set_result(None)
        elif event in ENDS:
            self._broken = f"{self._url}: {ENDS[event]}"
            if not self._connected.done():
                self._end = event
                self._connected.set_exception(BrokenChannelError(self._broken))
            self._socket.wake()

    async def send(self, chunks: Sequence[Any]) -> None:
        self._check_usable()
        sending: asyncio.Future[None] | None = None
        try:
            try:
                sending = self._socket.offer(chunks)
            except zmq.Again:
                sending = asyncio.ensure_future(self._socket.output(chunks))
            while sending is not None and not sending.done():
                await asyncio.wait([sending], timeout=0.1)
                self._check_usable()
            if sending is not None:
                sending.result()
        except zmq.ZMQError as error:
            raise BrokenChannelError(f"{self._url}: {error}") from error
        finally:
            if sending is not None:
                sending.cancel()

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedChannelError(f"the channel to {self._url} was closed")
        if self._broken:
            raise BrokenChannelError(self._broken)

    async def receive(self) -> list[Any]:
        while True:
            if self._closed:
                raise ClosedChannelError(f"the channel to {self._url} was closed")
            frames = self._socket.input()
            if frames is None:
                if self._broken:
                    raise BrokenChannelError(self._broken)
                await self._socket.change()
                continue
            if len(frames) > self._limits.frames:
                most = self._limits.frames
                self._broken = f"{self._url} sent a message of {len(frames)} frames; {most} are the most taken"
                raise BrokenChannelError(self._broken)
            return [frame.buffer for frame in frames]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._connected.done() and not self._connected.cancelled():
            self._connected.exception()  # seen: nobody else will ask
        if self._events is not None:
            self._events.cancel()
        self._monitored.stop()
        self._socket.raw.disable_monitor()
        self._monitor.close(0)
        self._socket.close()


class _Listener(Listener):
    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], url: str, limits: Limits, keys: Keys | None = None
    ) -> None:
        self._limits = limits
        self._socket = Socket(context.socket(zmq.ROUTER), url, limits)
        self._socket.raw.router_mandatory = True
        self._socket.raw.handshake_ivl = _HANDSHAKE_MS
        clients = None
        if isinstance(keys, ServerKeys):
            clients = keys.clients
            self._socket.raw.curve_server = True
            self._socket.raw.curve_publickey, self._socket.raw.curve_secretkey = keys.public, keys.secret
        self._closed = False
        self._guard = Guard(self._socket.raw, limits, clients=clients)
        endpoint = parse_endpoint(url)
        if endpoint.is_loopback and not endpoint.path:
            self._socket.raw.sndbuf = _LOOPBACK_BUFFER
        try:
            if endpoint.path:
                remove_stale_socket(Path(endpoint.path))
            with closed_to_others():
                self._socket.raw.bind(f"{url[: -len(':0')]}:*" if endpoint.port == 0 and not endpoint.path else url)
        except (zmq.ZMQError, OSError) as error:
            self._guard.close()
            self._socket.close()
            raise cannot_bind(f"cannot listen on {url}", error.errno, error) from error
        bound = self._socket.raw.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        self.url = self._guard.url = bound.decode().rstrip("\0")

    async def receive(self) -> tuple[bytes, list[Any]]:
        while True:
            try:
                frames = self._socket.input()
            except zmq.ZMQError as error:
                raise ClosedChannelError(f"the listener on {self.url} was closed") from error
            if frames is None:
                await self._socket.change()
                continue
            peer = frames[0].bytes
            if not self._guard.arrived(peer, frames[1:] or frames):
                continue
            if 2 <= len(frames) <= self._limits.frames:
                return peer, [frame.buffer for frame in frames[1:]]
            self._guard.drop(peer, f"it sent a message of {len(frames) - 1} frames")

    def user(self, peer: bytes) -> str | None:
        return self._guard.user(peer)

    def gone(self, peer: bytes) -> bool:
        return self._guard.gone(peer)

    def drop(self, peer: bytes, reason: str) -> None:
        self._guard.drop(peer, reason)

    async def send(self, peer: bytes, chunks: Sequence[Any]) -> None:
        try:
            await self._socket.output([peer, *chunks])
        except zmq.ZMQError as error:
            if self._closed:
                raise ClosedChannelError(f"the listener on {self.url} was closed") from error
            raise BrokenChannelError(f"the client is gone: {error}") from error

    async def close(self, linger: float = 0.0) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._socket.flushed(), linger)
        self._guard.close()
        self._socket.raw.linger = round(linger * 1000)  # small frames were copied: ZeroMQ still has them
        await unbind(self._socket.raw, self.url)
        self._socket.close()


class ZeroMQ(Transport):
    """ZeroMQ over TCP and Unix sockets; all its sockets share one context and one I/O thread."""

    encrypts = True

    def __init__(self) -> None:
        """Make the context; its threads start with the first socket."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._doorkeeper: Doorkeeper | None = None

    def listen(self, url: str, limits: Limits) -> Listener:
        """Bind a ROUTER; see `Transport.listen`."""
        if isinstance(self.keys, ServerKeys) and self._doorkeeper is None:
            self._doorkeeper = Doorkeeper(self._context, self.keys.clients)
        try:
            return _Listener(self._context, url, limits, self.keys)
        except zmq.ZMQError as error:
            raise EndpointError(f"cannot listen on {url}: {error}") from error

    async def connect(self, url: str, limits: Limits) -> Channel:
        """Connect a DEALER; see `Transport.connect`."""
        keep_freed_memory()
        try:
            channel = _Channel(self._context, url, limits, self.keys)
        except zmq.ZMQError as error:  # no descriptor is left, say: there may be one again
            raise BrokenChannelError(f"{url}: no socket can be made to reach it: {error}") from error
        await channel.connect()
        return channel

    def close(self) -> None:
        """End the context; see `Transport.close`."""
        if self._doorkeeper is not None:
            self._doorkeeper.close()
            self._doorkeeper = None
        self._context.term()


for _scheme in ("tcp", "ipc"):
    register(_scheme, ZeroMQ)
