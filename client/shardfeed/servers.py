"""The servers of one stream as a client knows them: who is up, what they agree on, who joins and who leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardfeed.addresses import Endpoints, resolve
from shardfeed.agreement import Agreement
from shardfeed.fetch_events import Event, Heard, ServerDown, ServerUp
from shardfeed.manifest_cache import ClientManifest, cached_manifest, keep_manifest
from shardfeed.manifest_query import ManifestQuery
from shardfeed.peer import Greeting, Peer
from shardfeed_wire.endpoint import expand_endpoints
from shardfeed_wire.errors import (
    ConnectError,
    MessageError,
    NobodyAnswersError,
    RefusedError,
    ShardfeedError,
)
from shardfeed_wire.messages import Batch, Manifest, Message, Pong, Refused, StreamInfo, Welcome
from shardfeed_wire.transport import Network

__all__ = ["Servers", "ServersListener"]

_STRAGGLER = 2.0
_LOOK_AGAIN = 2.0
_ASK_AGAIN = 0.2
_SILENCE, _LONGEST_SILENCE = 1.0, 8.0
"""Seconds after which another server is asked for the manifest too, the first time and at last."""

log = logging.getLogger("shardfeed")


class ServersListener(Protocol):
    """Who is told what servers say. All calls come in the event loop."""

    def happened(self, event: Event) -> None:
        """Something that a fetcher is to know."""

    def answered(self, url: str, batch: Batch, tensors: list[NDArray[Any]]) -> None:
        """A server answered; raises MessageError where the answer makes no sense."""

    def declined(self, url: str, refused: Refused) -> None:
        """A server refused a request."""

    def hopeless(self, reason: RefusedError) -> None:
        """Every server there is serves something else by now."""


class Servers:
    """Connections to the servers of one stream, and what is known of them."""

    def __init__(
        self, endpoints: Endpoints, stream: str, greeting: Greeting, network: Network, listener: ServersListener
    ) -> None:
        """Connect to nothing yet."""
        self._endpoints, self._stream, self._greeting = endpoints, stream, greeting
        self._looked_up: dict[str, list[str]] = {}
        self._network, self._listener = network, listener
        self._agreement = Agreement(stream)
        self._peers: dict[str, Peer] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._up: dict[str, ServerUp] = {}
        self._query: ManifestQuery | None = None
        self._changed = asyncio.Event()
        self._connected = False
        self._no_address = "no address was looked up"

    @property
    def info(self) -> StreamInfo:
        """What the servers say of the stream; there must have been one."""
        return self._agreement.info

    @property
    def up(self) -> list[ServerUp]:
        """The servers that can be asked."""
        return list(self._up.values())

    def states(self) -> str:
        """Say how each server is, for a person."""
        if not self._peers:
            return self._no_address
        said = {url: "up" if url in self._up else "no answer" for url in self._peers}
        return "; ".join(str(peer.last_error or f"{url}: {said[url]}") for url, peer in self._peers.items())

    def send(self, url: str, message: Message, tensors: list[NDArray[Any]] | None = None) -> None:
        """Send a message to a server soon, if it is still there. Does not block."""
        if url in self._up:
            self._peers[url].send(message, tensors)

    def drop(self, url: str) -> None:
        """Close the connection to a server; a new one is made."""
        if url in self._peers:
            self._peers[url].drop()

    async def connect(self, timeout: float) -> ClientManifest:
        """Return the manifest once servers are up that read every shard of it.

        `follow` must be running. Blocks for up to ``timeout`` seconds. Raises ConnectError, with each
        endpoint and its cause, and the RefusedError of a server that answers but does not fit.
        """
        manifest: ClientManifest | None = None
        try:
            async with asyncio.timeout(timeout):
                await self._until(lambda: bool(self._up))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STRAGGLER):  # each endpoint is heard before the first batch
                        await asyncio.gather(*(peer.tried.wait() for peer in self._peers.values()))
                self._agreement.check()
                manifest = await self._get_manifest()
                await self._until(lambda: not self._missing())
        except TimeoutError:
            if manifest is not None and (missing := self._missing()):
                raise ConnectError(self._no_holder(manifest, missing, timeout)) from None
            raise ConnectError(
                f"no server for stream {self._stream!r} within connect_timeout={timeout:g} s. {self.states()}. "
                "Start one with `shardfeed serve`, or correct the endpoint"
            ) from None
        self._connected = True
        return manifest

    async def follow(self) -> None:
        """Look again and again which servers there are, until cancelled. Raises where a connection's task failed."""
        while True:
            try:
                await self._look_up()
            except NobodyAnswersError as error:  # a name service that is down now takes nobody away
                self._no_address = str(error)
            waiting = asyncio.create_task(asyncio.sleep(_LOOK_AGAIN if self._peers else _ASK_AGAIN))
            try:
                done, _ = await asyncio.wait([waiting, *self._running.values()], return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
            for task in done - {waiting}:
                task.result()

    async def close(self) -> None:
        """End every connection."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _look_up(self) -> None:
        """Let servers that are new join, and those that are gone leave."""
        given = self._endpoints
        if callable(given):
            try:
                listed = await asyncio.to_thread(given)
            except ShardfeedError:
                raise
            except Exception as error:  # it is the user's, and may ask what is down now
                raise NobodyAnswersError(
                    f"the endpoints' callable raised {type(error).__name__}: {error}; correct it, or what it asks"
                ) from error
            if not listed:
                raise NobodyAnswersError("the endpoints' callable returned none")
            given = expand_endpoints(listed)
        urls = await resolve(given, self._looked_up)
        for url in urls:
            if url not in self._peers:
                self._peers[url] = Peer(url, self._network, self._greeting, self)
                self._running[url] = asyncio.create_task(self._peers[url].run())
                if self._connected:
                    log.info("a server joins: %s", url)
        for url in self._peers.keys() - set(urls):
            task = self._running.pop(url)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.lost(self._peers[url], NobodyAnswersError(f"{url}: it is no longer among the endpoints"))
            del self._peers[url]

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._agreement.check()
            self._changed.clear()
            await self._changed.wait()

    async def _get_manifest(self) -> ClientManifest:
        """Return the manifest from this machine's disk, or from the first server that answers."""
        info = self.info
        kept = await asyncio.to_thread(cached_manifest, info)
        if kept is not None:
            return kept
        self._query = query = ManifestQuery(self._stream, info)
        try:
            silence = _SILENCE
            while (found := query.result()) is None:
                await self._until(lambda: bool(self._up))
                if (url := query.next_of(self._up)) is not None:
                    self.send(url, query.message)
                elif query.ask_again():
                    await asyncio.sleep(_ASK_AGAIN)
                    continue
                if not await query.news(silence):
                    silence = min(_LONGEST_SILENCE, 2 * silence)  # it may be on its way, over a slow network
        finally:
            self._query = None
        manifest, tensors = found
        await asyncio.to_thread(keep_manifest, info.data, tensors)
        return manifest

    def _missing(self) -> list[int]:
        """Return the shards that no server reads, by number."""
        held: set[int] = set()
        for server in self._up.values():
            if server.shards is None:
                return []
            held |= server.shards
        return sorted(set(range(self.info.shards)) - held)

    def _no_holder(self, manifest: ClientManifest, missing: list[int], timeout: float) -> str:
        names = ", ".join(repr(manifest.shards[number]) for number in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        return (
            f"no server reads {names}{more} of stream {self._stream!r} within connect_timeout={timeout:g} s. "
            f"{self.states()}. Start a server where these shards are"
        )

    # What peers say

    def welcomed(self, peer: Peer, welcome: Welcome) -> None:
        """Take a server that serves the stream as agreed; see `PeerHandler`."""
        info = self._agreement.join(peer.url, welcome)
        self._up[peer.url] = ServerUp(peer.url, slots=2 * welcome.workers + 1, shards=_readable(info))
        self._changed.set()
        self._listener.happened(self._up[peer.url])

    def lost(self, peer: Peer, reason: ShardfeedError) -> None:
        """Forget a server that is gone; see `PeerHandler`."""
        was_up = self._up.pop(peer.url, None) is not None
        if self._connected and (was_up or isinstance(reason, RefusedError)):
            # Its text: a handler that keeps records would keep the error's frames, and the answers that they hold.
            log.warning("lost a server: %s", str(reason))
        if self._query is not None:
            self._query.lost(peer.url)
        self._listener.happened(ServerDown(peer.url, str(reason)))
        if isinstance(reason, RefusedError):
            self._agreement.refuse(reason)
            if self._connected and all(isinstance(other.last_error, RefusedError) for other in self._peers.values()):
                self._listener.hopeless(reason)
        self._changed.set()

    def received(self, peer: Peer, message: Message, tensors: list[NDArray[Any]]) -> None:
        """Pass a message on to whom it is for; see `PeerHandler`."""
        match message:
            case Batch():
                self._listener.answered(peer.url, message, tensors)
            case Refused() | Manifest() if self._query is not None and message.request == self._query.message.request:
                self._query.answered(peer.url, message, tensors)
            case Refused():
                self._listener.declined(peer.url, message)
            case Pong():
                self._listener.happened(Heard(peer.url))
            case _:
                pass


def _readable(info: StreamInfo) -> frozenset[int] | None:
    """Return the shards that a server reads, by number; None for all."""
    if info.readable is None:
        return None
    if not 0 <= info.shards <= 8 * len(info.readable):
        raise MessageError(f"it says that it has {info.shards} shards, and of fewer whether it reads them")
    bits = np.unpackbits(np.frombuffer(info.readable, np.uint8), count=info.shards, bitorder="little")
    return frozenset(np.flatnonzero(bits).tolist())
