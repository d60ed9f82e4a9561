"""The thread and event loop in which a client's network runs, and how the trainer's thread speaks to it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import UnsetType
from numpy.typing import NDArray

from shardfeed.addresses import Endpoints
from shardfeed.ahead import Ahead
from shardfeed.feed import Feed
from shardfeed.fetch_events import Event, FetchLimits, Heard, Taken, Tick
from shardfeed.fetching import Fetching
from shardfeed.manifest_cache import ClientManifest
from shardfeed.passes import Pass
from shardfeed.peer import Greeting
from shardfeed.routing import Step
from shardfeed.servers import Servers
from shardfeed_wire.curve import ClientKeys
from shardfeed_wire.errors import ClosedChannelError, RefusedError, ShardfeedError
from shardfeed_wire.messages import Batch, Refused, StreamInfo, Waited
from shardfeed_wire.transport import Network

__all__ = ["Session"]

_TICK = 0.05
_NUMBERS = 1 << 32
"""Requests of one pass are numbered apart from those of all others."""

log = logging.getLogger("shardfeed")


class Session:
    """Connections to the servers of one stream, kept over epochs.

    `fetch`, `counters` and `close` are called from the trainer's thread; the rest happens in its own.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        stream: str,
        greeting: Greeting,
        *,
        connect_timeout: float,
        keys: ClientKeys | None = None,
    ) -> None:
        """Start the thread and return when servers of the stream are up and its manifest is here.

        ``keys`` are for CURVE. Blocks for up to ``connect_timeout`` seconds. Raises what `Servers.connect` raises.
        """
        self._keys = keys
        self._endpoints, self._stream, self._greeting, self._timeout = endpoints, stream, greeting, connect_timeout
        self._fetching: Fetching | None = None
        self._ahead: Ahead | None = None
        self._passes = 0
        self._pass: Pass
        self._untold: Callable[[], Waited | UnsetType]
        self._closed = False
        self._feed: Feed | None = None
        self._error: BaseException = ClosedChannelError("the connection was closed in mid-epoch; begin the epoch again")
        self.over = False
        """Whether the thread has ended, of itself where nobody called `close`: then nothing can be fetched any more."""
        self._servers: Servers
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
        return self._servers.info

    def fetch(self, wanted: Pass, untold: Callable[[], Waited | UnsetType]) -> Feed:
        """Fetch a pass's steps into a feed, which ends the pass before, if there is one.

        Plans the epoch, unless that was done ahead. ``untold`` is called in the session's thread; see `Fetching`.
        """
        feed = Feed(lambda: self._call(self._taken, feed), lambda: self._call(self._unwanted, feed))
        ahead = self._ahead
        begun = ahead is not None and ahead.next_pass == wanted and ahead.fetching is not None
        self._feed = feed
        self._call(self._begin, wanted, None if begun else wanted.steps(self.manifest), untold, feed)
        if self.over:  # what was called may have come too late
            feed.end(self._error)
        return feed

    def counters(self) -> dict[str, int]:
        """Return what the current pass did beyond the plain way; see `fetch_events.Counters`."""
        fetching = self._fetching
        return fetching.counters() if fetching is not None else {}

    def close(self) -> None:
        """End the connections and the thread. Idempotent; blocks for a moment."""
        self._closed = True
        with contextlib.suppress(RuntimeError, AttributeError):  # the loop may be closed, or not be up yet
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
        except ShardfeedError as error:
            self._failed(error)
        except BaseException as error:
            log.exception("shardfeed's network thread failed; this is a defect")
            self._failed(error)
        finally:
            self.over = True
            if self._feed is not None:
                self._feed.end(self._error)

    def _failed(self, error: BaseException) -> None:
        self._error = error
        if self._fetching is not None:
            self._fetching.feed.end(error)
        if not self._ready.done():
            self._ready.set_exception(error)

    async def _main(self) -> None:
        self._stop, network = asyncio.Event(), Network(self._keys)
        self._servers = Servers(self._endpoints, self._stream, self._greeting, network, self)
        self._loop = asyncio.get_running_loop()
        stop: asyncio.Future[Any] = asyncio.create_task(self._stop.wait())
        running: list[asyncio.Future[Any]] = [
            asyncio.create_task(self._servers.follow()),
            asyncio.create_task(self._tick()),
            self._failure_of_a_callback(),
        ]
        connecting: asyncio.Future[Any] = asyncio.create_task(self._servers.connect(self._timeout))
        if self._closed:
            self._stop.set()
        try:
            await asyncio.wait([connecting, stop, *running], return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                self._ready.set_result(connecting.result())
                await asyncio.wait([stop, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in running:
                if task.done():
                    task.result()
        finally:
            for ending in (stop, connecting, *running):
                ending.cancel()
            await asyncio.gather(connecting, *running, return_exceptions=True)
            self._drop_ahead()
            await self._servers.close()
            network.close()

    def _failure_of_a_callback(self) -> asyncio.Future[None]:
        """Return what raises where a callback of the loop does, which asyncio would log while the trainer waits."""
        failure = self._loop.create_future()

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if "handle" in context and error is not None and not failure.done():
                failure.set_exception(error)
            else:
                loop.default_exception_handler(context)

        self._loop.set_exception_handler(handle)
        return failure

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self.happened(Tick())

    def _begin(
        self, wanted: Pass, steps: Iterator[Step] | None, untold: Callable[[], Waited | UnsetType], feed: Feed
    ) -> None:
        if self._fetching is not None:
            self._fetching.end()
        ahead, self._ahead, self._fetching = self._ahead, None, None
        if self._stop.is_set():
            return  # the end of the thread ends it
        self._pass, self._untold = wanted, untold
        if ahead is not None and ahead.next_pass == wanted:
            self._fetching = ahead.take_up(feed)
        elif ahead is not None:
            ahead.drop()
        if self._fetching is None:
            steps = wanted.steps(self.manifest) if steps is None else steps
            self._fetching = self._fetch(wanted, steps, wanted.limits, feed)

    def _fetch(
        self, wanted: Pass, steps: Iterator[Step], limits: FetchLimits, feed: Feed, *, ahead: bool = False
    ) -> Fetching:
        self._passes += 1
        return Fetching(
            steps,
            limits,
            wanted.options,
            feed=feed,
            servers=self._servers,
            manifest=self.manifest,
            untold=self._untold,
            first_request=self._passes * _NUMBERS + 1,
            ahead=ahead,
        )

    def _fetch_ahead(self, wanted: Pass, steps: Iterator[Step], limits: FetchLimits) -> Fetching:
        return self._fetch(wanted, steps, limits, Feed(lambda: None, lambda: None), ahead=True)

    def _look_ahead(self) -> None:
        """Begin the next epoch ahead where this one is nearly done."""
        if self._ahead is None and self._fetching is not None and self._fetching.nearly_done:
            self._ahead = Ahead(self._pass.following(), self.manifest, self._fetch_ahead)

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.drop()
            self._ahead = None

    def _under_way(self) -> list[Fetching]:
        """Return the pass under way and the one that is begun ahead, as far as there are."""
        ahead = None if self._ahead is None else self._ahead.fetching
        return [fetching for fetching in (self._fetching, ahead) if fetching is not None]

    def _taken(self, feed: Feed) -> None:
        if self._fetching is not None and self._fetching.feed is feed:
            self._fetching.happened(Taken())
            self._look_ahead()

    def _unwanted(self, feed: Feed) -> None:
        if self._fetching is not None and self._fetching.feed is feed:
            self._fetching.end()
            self._drop_ahead()

    # What the servers say

    def happened(self, event: Event) -> None:
        """Tell the passes under way; see `ServersListener`."""
        for fetching in self._under_way():
            fetching.happened(event)

    def answered(self, url: str, batch: Batch, tensors: list[NDArray[Any]]) -> None:
        """Give an answer to the pass that asked; others hear that the server lives. See `ServersListener`."""
        for fetching in self._under_way():
            if fetching.has_asked(batch.request):
                fetching.answered(url, batch, tensors)
            else:
                fetching.late(url, batch.request)
        self._look_ahead()

    def declined(self, url: str, refused: Refused) -> None:
        """Give a refusal to the pass that asked, as an answer; see `ServersListener`."""
        for fetching in self._under_way():
            if fetching.has_asked(refused.request):
                fetching.declined(url, refused)
            else:
                fetching.happened(Heard(url))

    def hopeless(self, reason: RefusedError) -> None:
        """End the pass under way: waiting will not help; see `ServersListener`."""
        self._drop_ahead()
        if self._fetching is not None:
            self._fetching.end(reason)
