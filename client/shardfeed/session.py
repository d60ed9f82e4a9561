"""The thread and event loop that perform what the fetcher decides."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardfeed.addresses import resolve
from shardfeed.agreement import Agreement
from shardfeed.answers import parse_answer
from shardfeed.delivery import BatchOptions, deliver
from shardfeed.feed import Feed
from shardfeed.fetch_events import (
    Action,
    Answered,
    AskWhetherAlive,
    Cancel,
    Declined,
    Deliver,
    Event,
    FetchLimits,
    GiveUp,
    Heard,
    Raise,
    Send,
    ServerDown,
    ServerUp,
    Taken,
    Tick,
    Waiting,
)
from shardfeed.fetcher import Fetcher
from shardfeed.manifest_cache import ClientManifest, cached_manifest, keep_manifest, parse_manifest
from shardfeed.peer import Greeting, Peer
from shardfeed.routing import Piece, Step
from shardfeed_wire import messages
from shardfeed_wire.errors import ConnectError, MessageError, NobodyAnswersError, RefusedError, ShardfeedError
from shardfeed_wire.messages import Batch, Get, GetManifest, Manifest, Message, Ping, Pong, Refused, StreamInfo, Welcome
from shardfeed_wire.transport import Network

__all__ = ["Session"]

_TICK = 0.05
_STRAGGLER = 2.0
_ASK_AGAIN = 0.2

log = logging.getLogger("shardfeed")


class _Fetch:
    """One pass over an epoch: its fetcher, the feed it fills, and the pieces that were asked for."""

    def __init__(self, fetcher: Fetcher, feed: Feed, options: BatchOptions) -> None:
        self.fetcher, self.feed, self.options = fetcher, feed, options
        self.asked: dict[int, tuple[str, Piece]] = {}


class Session:
    """Connections to the servers of one stream, kept over epochs. Its methods are called from the trainer's thread."""

    def __init__(self, endpoints: list[str], stream: str, greeting: Greeting, *, connect_timeout: float) -> None:
        """Start the thread and return when a server that serves the stream is up and its manifest here.

        Blocks for up to ``connect_timeout`` seconds. Raises ConnectError where no server is usable by
        then, naming each endpoint with its cause, or the RefusedError or EndpointError of a server
        that answers but does not fit.
        """
        self._stream, self._greeting, self._timeout = stream, greeting, connect_timeout
        self._endpoints = endpoints
        self._agreement = Agreement(stream)
        self._peers: dict[str, Peer] = {}
        self._up: dict[str, Welcome] = {}
        self._fetch: _Fetch | None = None
        self._next_request = 1
        self._manifests: dict[int, tuple[str, asyncio.Future[list[NDArray[Any]]]]] = {}
        self._changed: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._ready: concurrent.futures.Future[ClientManifest] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="shardfeed", daemon=True)
        self._thread.start()
        try:
            self.manifest = self._ready.result()
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> StreamInfo:
        """What the servers say of the stream."""
        return self._agreement.info

    def fetch(self, steps: Iterator[Step], limits: FetchLimits, options: BatchOptions) -> Feed:
        """Fetch the steps into a feed, which ends the pass before, if there is one. Does not block."""
        feed = Feed(lambda: self._call(self._event_of, feed, Taken()), lambda: self._call(self._end_of, feed))
        self._call(self._begin, steps, limits, options, feed)
        return feed

    def counters(self) -> dict[str, int]:
        """Return what the current pass did beyond the plain way; see `fetcher.Counters`."""
        fetch = self._fetch
        if fetch is None:
            return {}
        counted = fetch.fetcher.counters
        return {name: getattr(counted, name) for name in counted.__slots__}

    def close(self) -> None:
        """End the connections and the thread. Idempotent; blocks for a moment."""
        with contextlib.suppress(RuntimeError, AttributeError):  # the loop may be closed, or never have come up
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # closed
            self._loop.call_soon_threadsafe(function, *arguments)

    # In the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            log.exception("shardfeed's network thread failed; this is a defect")
            self._end(error)
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _main(self) -> None:
        self._loop, self._stop, self._changed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        network = Network()
        running: list[asyncio.Task[None]] = []
        try:
            for url in await resolve(self._endpoints):
                self._peers[url] = Peer(url, network, self._greeting, self)
                running.append(asyncio.create_task(self._peers[url].run()))
            self._ready.set_result(await self._connected(running))
            await self._until_stopped(running)
        except ShardfeedError as error:
            if self._ready.done():
                self._end(error)
            else:
                self._ready.set_exception(error)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            network.close()
            self._end(None)

    async def _until_stopped(self, running: list[asyncio.Task[None]]) -> None:
        """Tick until told to stop; a peer's task never ends by itself, so one that did has failed."""
        stop = asyncio.create_task(self._stop.wait())
        try:
            while not stop.done():
                done, _ = await asyncio.wait([stop, *running], timeout=_TICK, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stop}:
                    task.result()
                self._event(Tick())
        finally:
            stop.cancel()

    async def _connected(self, running: list[asyncio.Task[None]]) -> ClientManifest:
        """Wait for servers, then for the manifest."""
        try:
            async with asyncio.timeout(self._timeout):
                while not self._up:
                    self._agreement.check()
                    for task in running:
                        if task.done():
                            task.result()
                    self._changed.clear()
                    await self._changed.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STRAGGLER):  # each endpoint is heard before the first batch
                        await asyncio.gather(*(peer.tried.wait() for peer in self._peers.values()))
                self._agreement.check()
                return await self._get_manifest()
        except TimeoutError:
            raise ConnectError(self._no_server()) from None

    def _no_server(self) -> str:
        causes = "; ".join(str(peer.last_error or f"{url}: no answer") for url, peer in self._peers.items())
        return (
            f"no server for stream {self._stream!r} within connect_timeout={self._timeout:g} s. {causes}. "
            "Start one with `shardfeed serve`, or correct the endpoint"
        )

    async def _get_manifest(self) -> ClientManifest:
        info = self.info
        kept = await asyncio.to_thread(cached_manifest, info.data, samples=info.samples)
        if kept is not None:
            return kept
        while True:
            url = next(iter(self._up), None)
            if url is not None:
                request = self._number()
                answer: asyncio.Future[list[NDArray[Any]]] = self._loop.create_future()
                self._manifests[request] = url, answer
                self._peers[url].send(GetManifest(request=request, stream=self._stream, data=info.data))
                try:
                    tensors = await answer
                    manifest = parse_manifest(tensors, samples=info.samples)
                    await asyncio.to_thread(keep_manifest, info.data, tensors)
                    return manifest
                except (MessageError, RefusedError) as error:
                    raise RefusedError(f"{url}: {error}") from error
                except NobodyAnswersError:
                    await asyncio.sleep(_ASK_AGAIN)
                    continue
                finally:
                    self._manifests.pop(request, None)
            else:
                self._changed.clear()
                await self._changed.wait()

    def _number(self) -> int:
        self._next_request += 1
        return self._next_request - 1

    # What peers say

    def welcomed(self, peer: Peer, welcome: Welcome) -> None:
        """Take a server that serves the stream as agreed; see `PeerHandler`."""
        self._agreement.join(peer.url, welcome)
        self._up[peer.url] = welcome
        self._changed.set()
        self._event(self._server_up(peer.url))

    def _server_up(self, url: str) -> ServerUp:
        welcome = self._up[url]
        info = next(stream for stream in welcome.streams if stream.name == self._stream)
        shards = None
        if info.readable is not None:
            if info.shards > 8 * len(info.readable):
                raise MessageError(f"it says that it has {info.shards} shards, and of fewer whether it reads them")
            bits = np.unpackbits(np.frombuffer(info.readable, np.uint8), count=info.shards, bitorder="little")
            shards = frozenset(np.flatnonzero(bits).tolist())
        return ServerUp(url, slots=2 * welcome.workers + 1, shards=shards)

    def lost(self, peer: Peer, reason: ShardfeedError) -> None:
        """Forget a server that is gone; see `PeerHandler`."""
        was_up = self._up.pop(peer.url, None) is not None
        if self._ready.done() and (was_up or isinstance(reason, RefusedError)):
            log.warning("lost a server: %s", reason)
        if isinstance(reason, RefusedError):
            self._agreement.refuse(reason)
        for url, answer in self._manifests.values():
            if url == peer.url and not answer.done():
                answer.set_exception(NobodyAnswersError(str(reason)))
        self._changed.set()
        if self._fetch is not None:
            self._fetch.asked = {n: asked for n, asked in self._fetch.asked.items() if asked[0] != peer.url}
        self._event(ServerDown(peer.url, str(reason)))

    def received(self, peer: Peer, message: Message, tensors: list[NDArray[Any]]) -> None:
        """Pass a message on to whom it is for; see `PeerHandler`."""
        match message:
            case Batch():
                self._answered(peer, message, tensors)
            case Refused() | Manifest() if message.request in self._manifests:
                self._manifest_answered(message, tensors)
            case Refused():
                if self._fetch is not None:
                    self._fetch.asked.pop(message.request, None)
                self._event(Declined(peer.url, message.request, message.reason, message.message))
            case Pong():
                self._event(Heard(peer.url))
            case _:
                pass

    def _manifest_answered(self, message: Refused | Manifest, tensors: list[NDArray[Any]]) -> None:
        _, answer = self._manifests[message.request]
        if answer.done():
            return
        match message:
            case Manifest():
                answer.set_result(tensors)
            case Refused(reason="busy" | "indexing" | "draining"):
                answer.set_exception(NobodyAnswersError(message.message))
            case _:
                answer.set_exception(RefusedError(message.message))

    def _answered(self, peer: Peer, batch: Batch, tensors: list[NDArray[Any]]) -> None:
        fetch = self._fetch
        if fetch is None:
            return
        if batch.request not in fetch.asked:
            self._event(Heard(peer.url))
            return
        _, piece = fetch.asked.pop(batch.request)
        answer = parse_answer(batch, tensors, rows=piece.rows, keys=fetch.options.keys)
        size = sum(tensor.nbytes for tensor in tensors)
        self._event(Answered(peer.url, batch.request, answer, size))

    # What the fetcher decides

    def _begin(self, steps: Iterator[Step], limits: FetchLimits, options: BatchOptions, feed: Feed) -> None:
        if self._fetch is not None:
            self._end_of(self._fetch.feed)
        if self._stop.is_set():
            feed.end()
            return
        now = time.monotonic()
        fetcher = Fetcher(steps, limits, describe=self._describe, now=now, first_request=self._next_request)
        self._fetch = _Fetch(fetcher, feed, options)
        for url in self._up:
            self._event(self._server_up(url))
        self._event(Tick())

    def _describe(self, piece: Piece) -> str:
        """Name a piece's samples, as far as a client knows them."""
        names = []
        for row in piece.select[:8].tolist():
            block, index = int(piece.step.block[row]), int(piece.step.index[row])
            shard = self.manifest.shards[int(piece.step.shard[row])]
            names.append(f"sample {self.manifest.samples_before(block) + index} of shard {shard!r}")
        return ", ".join(names) + (f" and {piece.rows - 8} more" if piece.rows > 8 else "")

    def _event_of(self, feed: Feed, event: Event) -> None:
        if self._fetch is not None and self._fetch.feed is feed:
            self._event(event)

    def _event(self, event: Event) -> None:
        fetch = self._fetch
        if fetch is None:
            return
        try:
            for action in fetch.fetcher.handle(event, time.monotonic()):
                self._perform(fetch, action)
        except ShardfeedError as error:  # while rows were made into a batch
            self._end_of(fetch.feed, error)
        self._next_request = max(self._next_request, fetch.fetcher.next_request)
        if fetch.fetcher.done and self._fetch is fetch:
            fetch.feed.end()

    def _perform(self, fetch: _Fetch, action: Action) -> None:
        match action:
            case Send(url, request, piece):
                fetch.asked[request] = url, piece
                get = Get(
                    request=request,
                    stream=self._stream,
                    data=self.info.data,
                    recipe=self.info.recipe,
                    seed=fetch.options.seed,
                    epoch=piece.step.epoch,
                    keys=fetch.options.keys,
                )
                self._peers[url].send(get, [piece.step.block[piece.select], piece.step.index[piece.select]])
            case Cancel(url, request):
                fetch.asked.pop(request, None)
                if url in self._up:
                    self._peers[url].send(messages.Cancel(requests=(request,)))
            case Deliver(step, pieces):
                fetch.feed.put(deliver(step, pieces, fetch.options))
            case AskWhetherAlive(url):
                self._peers[url].send(Ping(number=0))
            case GiveUp(url, reason):
                log.warning("gave up on a server: %s %s", url, reason)
                self._peers[url].drop()
            case Waiting(seconds):
                log.warning("waiting for the next batch for %.0f s: %s", seconds, self._states())
            case Raise(error):
                self._end_of(fetch.feed, error)

    def _states(self) -> str:
        return "; ".join(str(peer.last_error) if peer.last_error else f"{url}: up" for url, peer in self._peers.items())

    def _end_of(self, feed: Feed, error: BaseException | None = None) -> None:
        """End the pass that fills ``feed``, if it is still the current one."""
        feed.end(error)
        if self._fetch is not None and self._fetch.feed is feed:
            fetch, self._fetch = self._fetch, None
            for action in fetch.fetcher.abandon():
                self._perform(fetch, action)

    def _end(self, error: BaseException | None) -> None:
        if self._fetch is not None:
            self._fetch.feed.end(error)
            self._fetch = None
