"""One pass over an epoch: events to its fetcher, and what the fetcher decides performed on the servers and the feed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import UnsetType
from numpy.typing import NDArray

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
    More,
    Raise,
    Send,
    ServerDown,
    Tick,
    Waiting,
)
from shardfeed.fetcher import Fetcher
from shardfeed.manifest_cache import ClientManifest
from shardfeed.routing import Piece, Step
from shardfeed.servers import Servers
from shardfeed.waiting import Trip
from shardfeed_wire import messages
from shardfeed_wire.errors import ShardfeedError
from shardfeed_wire.messages import Batch, Get, Ping, Refused, Waited

__all__ = ["Fetching"]

log = logging.getLogger("shardfeed")


class Fetching:
    """A pass under way. Its methods are called in the event loop."""

    def __init__(
        self,
        steps: Iterator[Step],
        limits: FetchLimits,
        options: BatchOptions,
        *,
        feed: Feed,
        servers: Servers,
        manifest: ClientManifest,
        untold: Callable[[], Waited | UnsetType],
        first_request: int,
        ahead: bool = False,
    ) -> None:
        """Ask the servers that are up for the first steps. Requests are numbered from ``first_request``.

        ``ahead``: nobody waits for them yet, and more may follow; `go_on` says so.
        ``untold`` gives what servers are to be told of the trainer's waiting, once.
        """
        self.feed = feed
        self._options, self._servers, self._manifest = options, servers, manifest
        self._untold = untold
        self._window = limits.prefetch_bytes
        self._asked: dict[int, tuple[str, Piece, float]] = {}
        self._trips: dict[Step, Trip] = {}  # of each step's latest answer
        self.over = False
        """Whether it has ended, by an error or because it was not wanted."""
        self._ahead = ahead
        self._first_request = first_request
        now = time.monotonic()
        self._fetcher = Fetcher(steps, limits, describe=self._describe, now=now, first_request=first_request)
        for server in servers.up:
            self.happened(server)
        self.happened(Tick())

    @property
    def nearly_done(self) -> bool:
        """Whether all is asked for, and at most half the window is in use."""
        return not self.over and self._fetcher.exhausted and self._fetcher.held <= self._window / 2

    def has_asked(self, request: int) -> bool:
        """Whether a request is this pass's, and not answered yet."""
        return request in self._asked

    def late(self, url: str, request: int) -> None:
        """Take an answer that nobody waits for: the server lives, and it is counted where it was this pass's."""
        own = self._first_request <= request < self._fetcher.next_request
        self.happened(Answered(url, request, None, 0) if own else Heard(url))

    def go_on(self, feed: Feed, more: More) -> None:
        """Deliver into ``feed``, beginning with what was made ahead."""
        self._ahead, self._window = False, more.limits.prefetch_bytes
        for batch in self.feed.batches():
            feed.put(batch)
        self.feed = feed
        self.happened(more)

    def counters(self) -> dict[str, int]:
        """Return what the pass did beyond the plain way; see `fetch_events.Counters`."""
        counted = self._fetcher.counters
        return {name: getattr(counted, name) for name in counted.__slots__}

    def happened(self, event: Event) -> None:
        """Tell the fetcher, and do what it says."""
        if isinstance(event, ServerDown):
            self._asked = {number: asked for number, asked in self._asked.items() if asked[0] != event.server}
        try:
            for action in self._fetcher.handle(event, time.monotonic()):
                self._perform(action)
        except ShardfeedError as error:  # while rows were made into a batch
            self.end(error)
        if self._fetcher.done and not self._ahead:
            self.feed.end()

    def answered(self, url: str, batch: Batch, tensors: list[NDArray[Any]]) -> None:
        """Take the answer to a request that `has_asked`."""
        _, piece, asked = self._asked.pop(batch.request)
        answer = parse_answer(batch, tensors, rows=piece.rows, keys=self._options.keys)
        self._trips[piece.step] = Trip(asked, time.monotonic(), batch.seconds)
        self.happened(Answered(url, batch.request, answer, sum(tensor.nbytes for tensor in tensors)))

    def declined(self, url: str, refused: Refused) -> None:
        """Take a refusal."""
        self._asked.pop(refused.request, None)
        self.happened(Declined(url, refused.request, refused.reason, refused.message))

    def end(self, error: BaseException | None = None) -> None:
        """End the pass, for ``error`` or because the trainer wants no more. Idempotent."""
        self.feed.end(error)
        if not self.over:
            self.over = True
            for action in self._fetcher.abandon():
                self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Send(url, request, piece):
                self._send(url, request, piece)
            case Cancel(url, request):
                self._asked.pop(request, None)
                self._servers.send(url, messages.Cancel(requests=(request,)))
            case Deliver(step, pieces):
                self.feed.put(deliver(step, pieces, self._options, self._trips.pop(step, None)))
            case AskWhetherAlive(url):
                self._servers.send(url, Ping(number=0))
            case GiveUp(url, reason):
                log.warning("gave up on a server: %s %s", url, reason)
                self._servers.drop(url)
            case Waiting(seconds) if not self._ahead:
                log.warning("waiting for the next batch for %.0f s: %s", seconds, self._servers.states())
            case Raise(error):
                self.end(error)

    def _send(self, url: str, request: int, piece: Piece) -> None:
        self._asked[request] = url, piece, time.monotonic()
        info = self._servers.info
        get = Get(
            request=request,
            stream=info.name,
            data=info.data,
            recipe=info.recipe,
            seed=self._options.seed,
            epoch=piece.step.epoch,
            keys=self._options.keys,
            waited=self._untold(),
        )
        self._servers.send(url, get, [piece.step.block[piece.select], piece.step.index[piece.select]])

    def _describe(self, piece: Piece) -> str:
        """Name a piece's samples, as far as a client knows them."""
        names = []
        for row in piece.select[:8].tolist():
            block, index = int(piece.step.block[row]), int(piece.step.index[row])
            shard = self._manifest.shards[int(piece.step.shard[row])]
            names.append(f"sample {self._manifest.samples_before(block) + index} of shard {shard!r}")
        return ", ".join(names) + (f" and {piece.rows - 8} more" if piece.rows > 8 else "")
