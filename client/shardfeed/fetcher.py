"""Which request goes where, and what to do when it fails: a pure state machine.

`Fetcher.handle` takes an event and the time and returns actions; `session.py` performs them. No
socket, no thread, no clock, no randomness: a run is a function of its events, so that it can be
simulated and replayed.

A step is cut into **pieces**, each the rows of one request. A piece is pending, asked (of one
server, or of two where it is late), or answered. Steps are delivered in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from shardfeed.fetch_events import (
    Action,
    Answered,
    AskWhetherAlive,
    Cancel,
    Counters,
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
from shardfeed.routing import Piece, Server, Step, cut_step
from shardfeed_wire.errors import (
    BadRequestError,
    RefusedError,
    SampleError,
    ShapeError,
    ShardError,
    StarvedError,
)

__all__ = ["Fetcher"]


_LATE_EVENT = 2.0
_SAY_WAITING = (5.0, 30.0, 120.0)
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.02, 1.0
_TRANSIENT = ("busy", "indexing", "draining")
_NOT_HERE = ("unreadable_shard", "failed")  # another server may do it
_TRIES_EACH = 3


@dataclass(slots=True)
class _Asked:
    piece: Piece
    server: str
    since: float
    ahead: int  # rows that the server had to do before


@dataclass(slots=True)
class _Flight:
    """A step on its way."""

    step: Step
    pieces: list[Piece] = field(default_factory=list)


class Fetcher:
    """Fetches the steps of an iterator in order from whatever servers there are."""

    def __init__(
        self,
        steps: Iterator[Step],
        limits: FetchLimits,
        *,
        describe: Callable[[Piece], str],
        now: float,
        first_request: int = 1,
    ) -> None:
        """Fetch nothing yet.

        ``describe`` names a piece's samples for a person; ``now`` is the time in seconds. Requests are
        numbered from ``first_request``; `next_request` goes on from there, so that a late answer to an
        earlier fetcher is known as such.
        """
        self._steps = steps
        self._limits = limits
        self._describe = describe
        self.counters = Counters()
        self._servers: dict[str, Server] = {}
        self._last_words: dict[str, str] = {}
        self._flights: deque[_Flight] = deque()
        self._pending: deque[Piece] = deque()
        self._asked: dict[int, _Asked] = {}
        self._untaken: deque[int] = deque()  # bytes of each step delivered and not taken
        self.next_request = first_request
        self._row_bytes = limits.row_bytes
        self._step_rows = 1  # of the step admitted last; the next has as many, or fewer
        self._exhausted = False
        self._failed = False
        self._seen = now
        self._lost = 0.0  # time in which this process did not run
        self._now = now
        self._useful = now
        self._said_waiting = 0

    @property
    def done(self) -> bool:
        """Whether every step was delivered."""
        return self._exhausted and not self._flights

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event and return what to do, in order. ``now`` never decreases."""
        if self._failed:
            return []
        if now - self._seen > _LATE_EVENT:  # the process was stopped: deadlines move by the gap
            self._lost += now - self._seen
        self._seen = now
        self._now = now - self._lost
        actions: list[Action] = []
        match event:
            case ServerUp(name, slots, shards):
                self._servers[name] = Server(name, slots, shards, heard=self._now)
                self._last_words.pop(name, None)
            case ServerDown(name, reason):
                self._server_down(name, reason, actions)
            case Answered(name, request, answer, size):
                self._answered(name, request, answer, size, actions)
            case Declined(name, request, reason, message):
                self._declined(name, request, reason, message, actions)
            case Heard(name):
                self._heard(name)
            case Taken():
                self._untaken.popleft()
                if not self._untaken:
                    self._useful, self._said_waiting = self._now, 0
            case Tick():
                self._tick(actions)
        self._deliver(actions)
        self._ask_more(actions)
        for index, action in enumerate(actions):
            if isinstance(action, Raise):
                self._failed = True
                return actions[: index + 1]
        return actions

    def abandon(self) -> list[Action]:
        """Return the cancellations of everything that is asked: the trainer wants no more."""
        self._failed = True
        return [Cancel(asked.server, request) for request, asked in self._asked.items()]

    # What happened

    def _heard(self, name: str) -> Server | None:
        server = self._servers.get(name)
        if server is not None:
            server.heard, server.asked_alive = self._now, False
        return server

    def _answered(self, name: str, request: int, answer: object, size: int, actions: list[Action]) -> None:
        server = self._heard(name)
        asked = self._asked.pop(request, None)
        if asked is None or asked.piece.answered:
            self.counters.stale += 1
            if asked is not None and server is not None:
                server.release(asked.piece.rows)
            return
        piece = asked.piece
        if server is not None:
            server.release(piece.rows)
            server.learn(piece.rows, self._now, asked.since)
        piece.answer, piece.size = answer, size
        self._row_bytes += 0.2 * (size / piece.rows - self._row_bytes)
        self._useful, self._said_waiting = self._now, 0
        for other in piece.requests:
            loser = self._asked.pop(other, None)
            if loser is not None:
                self._release(loser)
                actions.append(Cancel(loser.server, other))

    def _declined(self, name: str, request: int, reason: str, message: str, actions: list[Action]) -> None:
        server = self._heard(name)
        asked = self._asked.pop(request, None)
        if asked is None:
            return
        self._release(asked)
        self._last_words[name] = message
        piece = asked.piece
        if reason == "shapes_differ":
            actions.append(Raise(ShapeError(message)))
        elif reason == "bad_request":
            actions.append(Raise(BadRequestError(f"{name}: {message}")))
        elif reason in _TRANSIENT:
            self.counters.busy += 1
            if server is not None:
                server.pause(self._now, _FIRST_BACKOFF, _LONGEST_BACKOFF)
            self._ask_again(piece, request)
        elif reason in _NOT_HERE:
            piece.refusals[name] = piece.refusals.get(name, 0) + 1
            if all(piece.refusals.get(other, 0) >= _TRIES_EACH for other in self._capable(piece)):
                actions.append(Raise(ShardError(message) if reason == "unreadable_shard" else RefusedError(message)))
            self._ask_again(piece, request)
        else:  # it serves something else by now, or speaks otherwise
            self._ask_again(piece, request)
            actions.append(GiveUp(name, message))
            self._server_down(name, message, actions)

    def _server_down(self, name: str, reason: str, actions: list[Action]) -> None:
        self._last_words[name] = reason
        if self._servers.pop(name, None) is None:
            return
        for request in [number for number, asked in self._asked.items() if asked.server == name]:
            piece = self._asked.pop(request).piece
            piece.deaths += 1
            if piece.deaths >= self._limits.deaths and not piece.answered:
                actions.append(Raise(self._killer(piece)))
            self._ask_again(piece, request)

    def _killer(self, piece: Piece) -> SampleError:
        samples = self._describe(piece)
        return SampleError(
            f"{piece.deaths} servers died while they worked on these samples, so no other is asked: {samples}. "
            "Look at the servers' logs; leave the guilty sample out or mend it",
            reason=f"{piece.deaths} servers died",
        )

    def _ask_again(self, piece: Piece, request: int) -> None:
        piece.requests.remove(request)
        if not piece.answered and not piece.requests:
            self.counters.retried += 1
            self._pending.appendleft(piece)

    def _release(self, asked: _Asked) -> None:
        server = self._servers.get(asked.server)
        if server is not None:
            server.release(asked.piece.rows)

    # What time brings

    def _tick(self, actions: list[Action]) -> None:
        for server in list(self._servers.values()):
            silent = self._now - server.heard
            if not server.requests:
                server.heard = self._now
            elif silent > self._limits.silence:
                self.counters.evacuated += 1
                reason = f"has said nothing for {silent:.0f} s"
                actions.append(GiveUp(server.name, reason))
                self._server_down(server.name, reason, actions)
            elif silent > self._limits.ask_after and not server.asked_alive:
                server.asked_alive = True
                actions.append(AskWhetherAlive(server.name))
        if self._untaken or self.done:
            self._useful = self._now
            return
        waited = self._now - self._useful
        if waited > self._limits.timeout:
            actions.append(Raise(self._starved(waited)))
        elif self._said_waiting < len(_SAY_WAITING) and waited > _SAY_WAITING[self._said_waiting]:
            actions.append(Waiting(_SAY_WAITING[self._said_waiting]))
            self._said_waiting += 1
        self._hedge(actions)

    def _starved(self, waited: float) -> StarvedError:
        up = dict.fromkeys(self._servers, "up, with no useful answer")
        words = (
            "; ".join(f"{name}: {word}" for name, word in sorted({**up, **self._last_words}.items()))
            or "no server was ever up"
        )
        return StarvedError(
            f"the next batch had no useful answer for {waited:.0f} s (timeout={self._limits.timeout:g}). {words}. "
            "Look at the servers, or raise timeout= where they are that slow"
        )

    def _hedge(self, actions: list[Action]) -> None:
        """Ask a second server for what the trainer waits for, within the budget of extra work."""
        if not self._flights:
            return
        for piece in self._flights[0].pieces:
            if piece.answered or len(piece.requests) != 1:
                continue
            first = self._asked[piece.requests[0]]
            slow = self._servers[first.server]
            late = self._now - first.since - 2.0 * (first.ahead + piece.rows) * slow.row_seconds
            if late < 0.05:
                continue
            allowed = self._limits.extra_work * self.counters.rows_sent + piece.rows
            others = [s for s in self._free(piece) if s.name != first.server]
            if others and self.counters.rows_hedged + piece.rows <= allowed:
                self.counters.rows_hedged += piece.rows
                self._send(piece, min(others, key=lambda s: s.finish(piece.rows)), actions)

    # What to do

    def _deliver(self, actions: list[Action]) -> None:
        while self._flights and all(piece.answered for piece in self._flights[0].pieces):
            flight = self._flights.popleft()
            self._untaken.append(sum(piece.size for piece in flight.pieces))
            actions.append(Deliver(flight.step, tuple(flight.pieces)))

    def _ask_more(self, actions: list[Action]) -> None:
        while True:
            waiting = deque[Piece]()
            while self._pending:
                piece = self._pending.popleft()
                if piece.answered or piece.requests:
                    continue
                server = self._choose(piece)
                if server is None:
                    waiting.append(piece)
                else:
                    self._send(piece, server, actions)
            self._pending = waiting
            if waiting or not self._admit():
                return

    def _admit(self) -> bool:
        """Cut the next step into pieces, where some server is free and the window has room."""
        if self._exhausted or not any(server.free(self._now) for server in self._servers.values()):
            return False
        underway = sum(
            piece.size or piece.rows * self._row_bytes for flight in self._flights for piece in flight.pieces
        )
        held = underway + sum(self._untaken)
        if held and held + self._row_bytes * self._step_rows > self._limits.prefetch_bytes:
            return False
        step = next(self._steps, None)
        if step is None:
            self._exhausted = True
            return False
        self._step_rows = step.rows
        pieces = cut_step(step, list(self._servers.values()), self._limits.rows_per_request)
        self._flights.append(_Flight(step, pieces))
        self._pending.extend(pieces)
        return True

    def _capable(self, piece: Piece) -> list[str]:
        return [server.name for server in self._servers.values() if server.reads(piece.shards)]

    def _free(self, piece: Piece) -> list[Server]:
        return [
            server
            for server in self._servers.values()
            if server.free(self._now)
            and server.reads(piece.shards)
            and piece.refusals.get(server.name, 0) < _TRIES_EACH
        ]

    def _choose(self, piece: Piece) -> Server | None:
        """Return the free server expected to finish first; the piece's preferred one where it is about as good."""
        free = self._free(piece)
        if not free:
            return None
        best = min(free, key=lambda server: server.finish(piece.rows))
        limit = 1.3 * best.finish(piece.rows)
        return next((s for s in free if s.name == piece.preferred and s.finish(piece.rows) <= limit), best)

    def _send(self, piece: Piece, server: Server, actions: list[Action]) -> None:
        request = self.next_request
        self.next_request += 1
        self._asked[request] = _Asked(piece, server.name, self._now, server.rows)
        piece.requests.append(request)
        server.take(piece.rows)
        self.counters.rows_sent += piece.rows
        actions.append(Send(server.name, request, piece))
