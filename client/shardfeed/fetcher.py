"""Which request goes where, and what to do when it fails: a pure state machine.

`Fetcher.handle` takes an event and the time and returns actions; `fetching.py` performs them. No
socket, no thread, no clock, no randomness: a run is a function of its events, so that it can be
simulated and replayed.

A step is cut into **pieces**, each the rows of one request. A piece is pending, asked (of one
server, or of two where it is late), or answered. Steps are delivered in order. A pending piece is
cut anew when servers come and go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from shardfeed.fetch_errors import killers, starved
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
    More,
    Raise,
    Send,
    ServerDown,
    ServerUp,
    Taken,
    Tick,
    Waiting,
)
from shardfeed.fleet import Fleet
from shardfeed.patience import Patience
from shardfeed.routing import Piece, Server, Step, cut_step, one_row_a_shard, recut, rows_of_a_request
from shardfeed_wire.errors import BadRequestError, RefusedError, ShapeError, ShardError, StarvedError

__all__ = ["Fetcher"]


_LATE = 0.05
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.02, 1.0
_TRANSIENT = ("busy", "indexing", "draining")
_NOT_HERE = ("unreadable_shard", "failed")  # another server may do it


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
        self._servers = Fleet()
        self._patience = Patience(now)
        self._flights: deque[_Flight] = deque()
        self._pending: deque[Piece] = deque()
        self._asked: dict[int, _Asked] = {}
        self._untaken: deque[int] = deque()  # bytes of each step delivered and not taken
        self.next_request = first_request
        self._row_bytes = limits.row_bytes
        self._step_rows = 1  # of the step admitted last; the next has as many, or fewer
        self._exhausted = False
        self._failed = False

    @property
    def _now(self) -> float:
        return self._patience.now

    @property
    def done(self) -> bool:
        """Whether every step was delivered."""
        return self._exhausted and not self._flights

    @property
    def exhausted(self) -> bool:
        """Whether every step is under way or delivered."""
        return self._exhausted

    @property
    def held(self) -> float:
        """Bytes that are asked for, or delivered and not taken."""
        underway = sum(
            piece.size or piece.rows * self._row_bytes for flight in self._flights for piece in flight.pieces
        )
        return underway + sum(self._untaken)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event and return what to do, in order. ``now`` never decreases."""
        if self._failed:
            return []
        self._patience.advance(now)
        actions: list[Action] = []
        match event:
            case ServerUp(name, slots, shards):
                self._server_up(Server(name, slots, shards, heard=self._now))
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
                    self._patience.useful()
            case More(steps, limits):
                self._steps, self._limits, self._exhausted = chain(self._steps, steps), limits, False
                self._patience.useful()
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

    def _server_up(self, server: Server) -> None:
        self._servers.joined(server)
        for flight in self._flights:
            for piece in flight.pieces:
                piece.forget_refusals(server.name)

    def _heard(self, name: str) -> Server | None:
        server = self._servers.get(name)
        if server is not None:
            server.heard, server.asked_alive, server.suspect = self._now, False, False
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
        if piece.step is self._flights[0].step:
            self._patience.useful()
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
        self._servers.said(name, message)
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
            piece.refused(name, self._now)
            if all(piece.is_refused(other) for other in self._servers.capable(piece)):
                actions.append(Raise(ShardError(message) if reason == "unreadable_shard" else RefusedError(message)))
            self._ask_again(piece, request)
        else:  # it serves something else by now, or speaks otherwise
            self._ask_again(piece, request)
            actions.append(GiveUp(name, message))
            self._server_down(name, message, actions)

    def _server_down(self, name: str, reason: str, actions: list[Action]) -> None:
        if not self._servers.left(name, reason):
            return
        for request in [number for number, asked in self._asked.items() if asked.server == name]:
            piece = self._asked.pop(request).piece
            piece.deaths += 1
            if piece.deaths >= self._limits.deaths and not piece.answered:
                actions.append(Raise(killers(self._describe(piece), piece.deaths)))
            self._ask_again(piece, request)

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
        for server in self._servers:
            silent = self._now - server.heard
            if not server.requests and not server.suspect:
                server.heard = self._now
            elif silent > self._limits.silence:
                self.counters.evacuated += 1
                reason = f"has said nothing for {silent:.0f} s"
                actions.append(GiveUp(server.name, reason))
                self._server_down(server.name, reason, actions)
            elif silent > self._limits.ask_after and not server.asked_alive:
                server.asked_alive = True
                actions.append(AskWhetherAlive(server.name))
            elif silent > self._limits.suspect:
                server.suspect = True
        self._rescue(actions)
        if self._untaken or self.done:
            self._patience.idle()
            return
        if self._patience.waited > self._limits.timeout:
            actions.append(Raise(self._starved()))
        elif (seconds := self._patience.to_say()) is not None:
            actions.append(Waiting(seconds))
        self._hedge(actions)

    def _starved(self) -> StarvedError:
        pieces = self._flights[0].pieces if self._flights else []
        orphans = [piece for piece in pieces if not piece.answered and not self._servers.capable(piece)]
        lost = one_row_a_shard(orphans)
        return starved(
            self._patience.waited,
            self._limits.timeout,
            words=self._servers.words,
            orphans=self._describe(lost) if lost is not None else None,
            holders=self._servers.once_read(lost.shards) if lost is not None else [],
        )

    def _rescue(self, actions: list[Action]) -> None:
        """Ask others for what may be stuck at stopped servers, without waiting for these to be given up."""
        if not any(server.suspect for server in self._servers):
            return
        for piece in [piece for flight in self._flights for piece in flight.pieces]:
            if piece.answered or not piece.requests or not self._may_ask_more(piece):
                continue
            if all(self._servers[self._asked[request].server].suspect for request in piece.requests):
                server = self._choose(piece)
                if server is not None:
                    self.counters.retried += 1
                    self._send(piece, server, actions)

    def _hedge(self, actions: list[Action]) -> None:
        """Ask a second server for what the trainer waits for, within the budget of extra work."""
        if not self._flights:
            return
        for piece in self._flights[0].pieces:
            if piece.answered or len(piece.requests) != 1 or not self._may_ask_more(piece):
                continue
            first = self._asked[piece.requests[0]]
            others = [s for s in self._servers.well(piece, self._now) if s.name != first.server and s.free(self._now)]
            if not others:
                continue
            other = min(others, key=lambda server: server.finish(piece.rows, self._now))
            allowed = self._limits.extra_work * self.counters.rows_sent + piece.rows
            if self._is_late(first, other) and self.counters.rows_hedged + piece.rows <= allowed:
                self.counters.rows_hedged += piece.rows
                self._send(piece, other, actions)

    def _may_ask_more(self, piece: Piece) -> bool:
        """Whether one server more may be asked for a piece: what kills servers must not meet too many at once."""
        return piece.deaths + len(piece.requests) < self._limits.deaths

    def _is_late(self, asked: _Asked, other: Server) -> bool:
        """Whether a request has taken twice what it should, or would take twice what another server needs."""
        usual = (asked.ahead + asked.piece.rows) * self._servers[asked.server].row_seconds
        taken = self._now - asked.since
        return taken > 2 * usual + _LATE or usual - taken > 2 * other.finish(asked.piece.rows, self._now) + _LATE

    # What to do

    def _deliver(self, actions: list[Action]) -> None:
        while self._flights and all(piece.answered for piece in self._flights[0].pieces):
            flight = self._flights.popleft()
            self._patience.useful()
            self._untaken.append(sum(piece.size for piece in flight.pieces))
            actions.append(Deliver(flight.step, tuple(flight.pieces)))

    def _ask_more(self, actions: list[Action]) -> None:
        while self._servers.any_free(self._now):
            waiting = deque[Piece]()
            while self._pending:
                piece = self._pending.popleft()
                if piece.answered or piece.requests:
                    continue
                for part in self._fit(piece):
                    server = self._choose(part)
                    if server is None:
                        waiting.append(part)
                    else:
                        self._send(part, server, actions)
            self._pending = waiting
            if waiting or not self._admit():
                return

    def _admit(self) -> bool:
        """Cut the next step into pieces, where some server is free and the window has room."""
        if self._exhausted or not self._servers.any_free(self._now):
            return False
        held = self.held
        if held and held + self._row_bytes * self._step_rows > self._limits.prefetch_bytes:
            return False
        step = next(self._steps, None)
        if step is None:
            self._exhausted = True
            return False
        self._step_rows = step.rows
        servers = list(self._servers)
        rows = rows_of_a_request(self._limits.rows_per_request, servers, self._row_bytes)
        pieces = cut_step(step, servers, rows)
        for piece in pieces:
            piece.fits = self._servers.changes
        self._flights.append(_Flight(step, pieces))
        self._pending.extend(pieces)
        return True

    def _fit(self, piece: Piece) -> list[Piece]:
        """Cut a pending piece anew where servers have come or gone since."""
        if piece.fits == self._servers.changes:
            return [piece]
        parts = recut(piece, list(self._servers))
        for part in parts:
            part.fits = self._servers.changes
        if parts != [piece]:
            flight = next(flight for flight in self._flights if flight.step is piece.step)
            flight.pieces.remove(piece)
            flight.pieces.extend(parts)
        return parts

    def _choose(self, piece: Piece) -> Server | None:
        return self._servers.choose(piece, self._now, first=piece.step is self._flights[0].step)

    def _send(self, piece: Piece, server: Server, actions: list[Action]) -> None:
        request = self.next_request
        self.next_request += 1
        self._asked[request] = _Asked(piece, server.name, self._now, server.rows)
        piece.requests.append(request)
        server.take(piece.rows, self._now)
        self.counters.rows_sent += piece.rows
        actions.append(Send(server.name, request, piece))
