"""What a fetcher is told, and what it says is to be done: events, actions, and what bounds and counts them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shardfeed.routing import Piece, Step
from shardfeed_wire.errors import ShardfeedError

__all__ = [
    "Action",
    "Answered",
    "AskWhetherAlive",
    "Cancel",
    "Counters",
    "Declined",
    "Deliver",
    "Event",
    "FetchLimits",
    "GiveUp",
    "Heard",
    "More",
    "Raise",
    "Send",
    "ServerDown",
    "ServerUp",
    "Taken",
    "Tick",
    "Waiting",
]


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What bounds a fetcher. Times in seconds, ``row_bytes`` a first guess of one row's bytes.

    A request asks for ``rows_per_request`` rows at most, or more where `routing.rows_of_a_request` says so.
    A server with requests that says nothing is asked for a sign of life after ``ask_after``; after
    ``suspect`` what it has is asked elsewhere as well; after ``silence`` it is given up.
    """

    prefetch_bytes: int
    timeout: float
    row_bytes: float = 150_000.0
    rows_per_request: int = 256
    ask_after: float = 2.0
    suspect: float = 3.0
    silence: float = 10.0
    extra_work: float = 0.05
    deaths: int = 3

    def share(self, parts: int) -> FetchLimits:
        """Return the same with one of ``parts`` parts of the window."""
        return replace(self, prefetch_bytes=max(1, self.prefetch_bytes // parts))


# Events: what happened.


@dataclass(frozen=True, slots=True)
class ServerUp:
    """A server can be asked. ``shards`` it reads (None: all), ``slots`` requests it may hold at once."""

    server: str
    slots: int
    shards: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class ServerDown:
    """A server is gone; what it was asked will not be answered."""

    server: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A request was answered, with ``size`` bytes; ``answer`` is opaque here."""

    server: str
    request: int
    answer: object
    size: int


@dataclass(frozen=True, slots=True)
class Declined:
    """A request was refused; ``reason`` is the protocol's word."""

    server: str
    request: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Heard:
    """A server showed that it lives."""

    server: str


@dataclass(frozen=True, slots=True)
class Taken:
    """The trainer took the oldest delivered step."""


@dataclass(frozen=True, slots=True)
class More:
    """There are more steps, and the trainer waits for them from now on, within these limits."""

    steps: Iterator[Step]
    limits: FetchLimits


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = ServerUp | ServerDown | Answered | Declined | Heard | Taken | More | Tick


# Actions: what to do.


@dataclass(frozen=True, slots=True)
class Send:
    """Ask ``server`` for the piece's rows under the number ``request``."""

    server: str
    request: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Cancel:
    """Tell ``server`` that the request is not needed any more."""

    server: str
    request: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand the step to the trainer; all its pieces are answered."""

    step: Step
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class AskWhetherAlive:
    """Ping the server."""

    server: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Close the channel to the server: it fell silent, or serves something else by now."""

    server: str
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """The trainer has waited so many seconds for its next batch: say so."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Raise:
    """Raise the error in the trainer; the fetcher is done."""

    error: ShardfeedError


Action = Send | Cancel | Deliver | AskWhetherAlive | GiveUp | Waiting | Raise


@dataclass(slots=True)
class Counters:
    """What a fetcher did beyond the plain way, for figures and for tests that ask whether it did."""

    rows_sent: int = 0
    rows_hedged: int = 0
    retried: int = 0
    stale: int = 0
    busy: int = 0
    evacuated: int = 0
