"""SCTP as a transport: one association for each client, from Linux's own stack.

An association keeps messages apart and its streams independent, sends heartbeats by itself, and may
run over several addresses of each side. What is ours is the framing (`sctp_fragments`), the limits,
and that a peer which does not read costs no more than them and the kernel's two buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from itertools import count
from typing import Any

from shardfeed_wire.binding import cannot_bind
from shardfeed_wire.complaints import Complaints
from shardfeed_wire.crowd import Share
from shardfeed_wire.endpoint import Endpoint, parse_endpoint
from shardfeed_wire.errors import BrokenChannelError, ClosedChannelError
from shardfeed_wire.sctp_association import FRAGMENT_BYTES, Association
from shardfeed_wire.sctp_sockets import Address, abort, bind, look_up, open_socket, start_connecting
from shardfeed_wire.transport import Channel, Limits, Listener, Transport, register

__all__ = ["SCTP"]

_BACKLOG = 1_024
_GREETING_SECONDS = 20.0
_NO_DESCRIPTORS_SECONDS = 0.1
_LOOK_SECONDS = 1.0


class _Channel(Channel):
    def __init__(self, connected: socket.socket, url: str, limits: Limits, scratch: memoryview) -> None:
        self._url, self._closed = url, False
        self._messages: deque[list[Any]] = deque()
        self._changed = asyncio.Event()
        self._association = Association(connected, url, limits, scratch, self._received, self._changed.set)

    async def greeted(self) -> None:
        """Return when the peer greeted; raises BrokenChannelError where it does not speak as we do."""
        while not self._association.has_greeted:
            self._check_usable()
            await self._change()

    def _received(self, message: list[Any]) -> None:
        self._messages.append(message)
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedChannelError(f"the channel to {self._url} was closed")
        if self._association.ended is not None:
            raise BrokenChannelError(self._association.ended)

    async def send(self, chunks: Sequence[Any]) -> None:
        self._check_usable()
        await self._association.send(chunks)

    async def receive(self) -> list[Any]:
        while True:
            if self._messages and not self._closed:
                self._association.taken()
                return self._messages.popleft()
            self._check_usable()
            await self._change()

    def close(self) -> None:
        self._closed = True
        self._association.end("the channel was closed", ours=True)
        self._changed.set()


class _Listener(Listener):
    def __init__(self, url: str, limits: Limits, scratch: memoryview, identities: Iterator[int]) -> None:
        endpoint = parse_endpoint(url)
        try:
            family, addresses = look_up(endpoint)
            self._socket = open_socket(family, url)
            try:
                port = bind(self._socket, addresses)
                self._socket.listen(_BACKLOG)
            except BaseException:
                self._socket.close()
                raise
        except OSError as error:
            raise cannot_bind(f"cannot listen on {url}", error.errno, error.strerror or error) from error
        self.url = str(replace(endpoint, port=port))
        self._limits, self._scratch = limits, scratch
        self._closed = False
        self._peers: dict[bytes, Association] = {}
        self._identities = identities
        self._messages: deque[tuple[bytes, list[Any]]] = deque()
        self._changed = asyncio.Event()
        self._silent: dict[bytes, Association] = {}
        self._share = Share(self._cut_silent)
        self._complaints = Complaints()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)
        self._accept_on()

    def _accept_on(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connected, address = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                self._complaints.say("accept", f"{self.url}: a client was not let in: {error.strerror}")
                self._loop.remove_reader(self._socket.fileno())
                self._loop.call_later(_NO_DESCRIPTORS_SECONDS, self._accept_on)
            return
        connected.setblocking(False)
        identity = next(self._identities).to_bytes(8, "big")
        name = f"client {address[0]}:{address[1]}"

        def received(message: list[Any]) -> None:
            if self._silent.pop(identity, None) is not None:
                self._count()
            self._messages.append((identity, message))
            self._changed.set()

        def changed() -> None:
            association = self._peers.get(identity)
            if association is not None and association.ended is not None:
                del self._peers[identity]
                self._silent.pop(identity, None)
                self._count()
                if " sent " in association.ended or not association.has_greeted:
                    self._complaints.say("ended", association.ended)

        association = Association(connected, name, self._limits, self._scratch, received, changed)
        if association.ended is None:
            self._peers[identity] = self._silent[identity] = association
            self._loop.call_later(_GREETING_SECONDS, _end_stranger, association)
            self._count()
            if self._share.make_room():
                self._complaints.say(
                    "many",
                    f"{self.url}: {len(self._peers):,} clients, and with those of other listeners as many as fit the "
                    "descriptors that this process may have (`ulimit -n`); cut off one that has said nothing",
                )

    def _count(self) -> None:
        self._share.connections, self._share.silent = len(self._peers), len(self._silent)

    def _cut_silent(self) -> None:
        for association in self._silent.values():
            association.end("it has said nothing, and others want to")
            return

    def _look(self) -> None:
        """Cut off who has let us wait for too long."""
        for peer, association in list(self._peers.items()):
            if why := association.overdue():
                self.drop(peer, why)
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    async def receive(self) -> tuple[bytes, list[Any]]:
        while True:
            if self._closed:
                raise ClosedChannelError(f"the listener on {self.url} was closed")
            if self._messages:
                identity, message = self._messages.popleft()
                if (association := self._peers.get(identity)) is not None:
                    association.taken()
                return identity, message
            self._changed.clear()
            await self._changed.wait()

    async def send(self, peer: bytes, chunks: Sequence[Any]) -> None:
        if self._closed:
            raise ClosedChannelError(f"the listener on {self.url} was closed")
        if (association := self._peers.get(peer)) is None:
            raise BrokenChannelError("the client is gone")
        await association.send(chunks)

    def gone(self, peer: bytes) -> bool:
        return peer not in self._peers

    def drop(self, peer: bytes, reason: str) -> None:
        if (association := self._peers.get(peer)) is not None:
            self._complaints.say("dropped", f"{association.name} is cut off: {reason}")
            association.end(reason)

    async def close(self, linger: float = 0.0) -> None:
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._share.close()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._messages.clear()
        self._changed.set()
        associations = list(self._peers.values())
        try:
            if linger > 0 and associations:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(linger):
                        await asyncio.gather(*(association.finish() for association in associations))
        finally:
            for association in associations:
                association.end("the listener was closed", ours=True)


def _end_stranger(association: Association) -> None:
    if not association.has_greeted:
        association.end("it never greeted")


class SCTP(Transport):
    """SCTP from the kernel; its associations share one buffer that fragments arrive in, and are counted together."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._scratch = memoryview(bytearray(FRAGMENT_BYTES))
        self._identities = count(1)

    def listen(self, url: str, limits: Limits) -> Listener:
        """Bind one or several addresses; see `Transport.listen`."""
        return _Listener(url, limits, self._scratch, self._identities)

    async def connect(self, url: str, limits: Limits) -> Channel:
        """Connect to a server by one or several of its addresses; see `Transport.connect`."""
        connected = await _connect(url)
        channel = _Channel(connected, url, limits, self._scratch)
        try:
            await channel.greeted()
        except BaseException:
            channel.close()
            raise
        return channel

    def close(self) -> None:
        """Release the buffer; see `Transport.close`."""
        self._scratch.release()


async def _connect(url: str) -> socket.socket:
    family, addresses = await _resolve(parse_endpoint(url), url)
    try:
        unconnected = open_socket(family, url)
    except OSError as error:  # no descriptor is left
        raise BrokenChannelError(f"{url}: {error.strerror}") from error
    try:
        start_connecting(unconnected, addresses)
        await _writable(unconnected)
        failed = unconnected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
    except OSError as error:
        abort(unconnected)
        said = "nobody listens there" if error.errno == errno.ECONNREFUSED else error.strerror
        raise BrokenChannelError(f"{url}: {said}") from error
    except BaseException:
        abort(unconnected)
        raise
    return unconnected


async def _resolve(endpoint: Endpoint, url: str) -> tuple[int, list[Address]]:
    try:
        for host in endpoint.hosts:
            ip_address(host)
    except ValueError:
        try:
            return await asyncio.to_thread(look_up, endpoint)
        except OSError as error:
            raise BrokenChannelError(f"{url}: {error.strerror or error}") from error
    return look_up(endpoint)


async def _writable(waited_for: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    is_writable = loop.create_future()
    descriptor = waited_for.fileno()

    def noticed() -> None:
        if not is_writable.done():
            is_writable.set_result(None)

    loop.add_writer(descriptor, noticed)
    try:
        await is_writable
    finally:
        loop.remove_writer(descriptor)


register("sctp", SCTP)
