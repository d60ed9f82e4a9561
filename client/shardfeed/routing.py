"""What the fetcher knows of a server, and how a step is cut into pieces for the servers there are. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Piece", "Server", "Step", "cut_step", "one_row_a_shard", "recut", "rows_of_a_request"]

_FEWEST_ROWS = 16
"""A piece smaller than this costs more in messages than a warm page cache saves."""

_FIRST_ROW_SECONDS = 1e-3

_QUICK_SECONDS, _SMALL_BYTES, _MANY_ROWS = 0.02, 1 << 20, 4096
"""What a request may take of a server's time, bring and ask for where more rows than usual go into it."""

_TRIES_EACH = 3
"""How often a server is asked for what it says it cannot do."""

_FIRST_PAUSE = 1.0
"""Seconds before a server that cannot do a piece is asked for it again; twice that the next time."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One rank's part of one step, as it is asked for.

    ``block`` (uint32), ``index`` (uint16), ``shard`` (uint32), ``positions`` (int64) and ``padding``
    (bool) have shape (rows,); ``next_consumed`` counts the epoch's samples consumed when the rank's
    next step begins.
    """

    number: int
    epoch: int
    next_consumed: int
    block: NDArray[np.uint32]
    index: NDArray[np.uint16]
    shard: NDArray[np.uint32]
    positions: NDArray[np.int64]
    padding: NDArray[np.bool_]

    @property
    def rows(self) -> int:
        """How many rows this rank gets."""
        return len(self.block)


@dataclass(slots=True, eq=False)
class Piece:
    """The rows of a step that travel in one request. ``select`` numbers them: int64 of shape (rows,)."""

    step: Step
    select: NDArray[np.int64]
    preferred: str | None
    requests: list[int] = field(default_factory=list)
    answer: object = None
    size: int = 0
    deaths: int = 0
    fits: int = 0
    """For which servers it was cut: the number of their changes until then."""
    _refusals: dict[str, tuple[int, float]] = field(default_factory=dict)
    _shards: frozenset[int] | None = None

    @property
    def shards(self) -> frozenset[int]:
        """The shards that its rows lie in; found when first asked for, since most servers read all there are."""
        if self._shards is None:
            self._shards = frozenset(self.step.shard[self.select].tolist())
        return self._shards

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(self.select)

    @property
    def answered(self) -> bool:
        """Whether its answer is here."""
        return self.answer is not None

    def refused(self, server: str, now: float) -> None:
        """Note that a server cannot do it: it is asked again after a pause, in which another may come up."""
        times = self._refusals.get(server, (0, 0.0))[0] + 1
        self._refusals[server] = times, now + _FIRST_PAUSE * 2 ** (times - 1)

    def forget_refusals(self, server: str) -> None:
        """Forget what a server refused: it was started anew."""
        self._refusals.pop(server, None)

    def is_refused(self, server: str) -> bool:
        """Whether a server has refused it so often that it is not asked again."""
        return self._refusals.get(server, (0, 0.0))[0] >= _TRIES_EACH

    def may_go_to(self, server: str, now: float) -> bool:
        """Whether a server may be asked for it, after what it refused."""
        return server not in self._refusals or (not self.is_refused(server) and now >= self._refusals[server][1])

    def part(self, select: NDArray[np.int64], preferred: str | None) -> Piece:
        """Return some of its rows as a piece with the same past."""
        return Piece(self.step, select, preferred, deaths=self.deaths, _refusals=dict(self._refusals))


@dataclass(slots=True, eq=False)
class Server:
    """A server that is up. Times in seconds."""

    name: str
    slots: int
    shards: frozenset[int] | None
    heard: float
    requests: int = 0
    rows: int = 0
    row_seconds: float = _FIRST_ROW_SECONDS
    asked_alive: bool = False
    suspect: bool = False
    """Whether it was asked for a sign of life and has given none: it may be stopped."""
    _learned: bool = False
    _answered: float = 0.0
    _progress: float = 0.0
    """When it answered last, or was given work after it had none."""
    _paused_until: float = 0.0
    _pause: float = 0.0

    def take(self, rows: int, now: float) -> None:
        """Count a request that was sent."""
        if not self.requests:
            self._progress = now
        self.requests += 1
        self.rows += rows

    def release(self, rows: int) -> None:
        """Count a request that is over."""
        self.requests -= 1
        self.rows -= rows

    def learn(self, rows: int, now: float, since: float) -> None:
        """Learn the pace from an answer: its rows took the time since they were asked for, or since the last answer."""
        pace = (now - max(since, self._answered)) / rows
        self.row_seconds = self.row_seconds + 0.2 * (pace - self.row_seconds) if self._learned else pace
        self._learned, self._answered, self._progress, self._pause = True, now, now, 0.0

    def finish(self, rows: int, now: float) -> float:
        """Return the seconds after which it is expected to have done ``rows`` more rows."""
        overdue = 0.0
        if self.requests:
            usual = 2 * self.rows / self.requests * self.row_seconds
            overdue = max(0.0, now - self._progress - usual)
        return (self.rows + rows) * self.row_seconds + overdue

    def has_rested(self, rows: int, now: float) -> bool:
        """Whether it has had nothing to do for so long that its pace may have changed: a tenth of its time is tried."""
        return not self.requests and now - self._answered > 10 * rows * self.row_seconds

    def pause(self, now: float, first: float, longest: float) -> None:
        """Ask nothing for a while, longer each time until it answers again."""
        self._pause = min(longest, max(first, 2 * self._pause))
        self._paused_until = now + self._pause

    def free(self, now: float) -> bool:
        """Whether it may be asked."""
        return self.requests < self.slots and self.is_well(now)

    def is_well(self, now: float) -> bool:
        """Whether it answers: it may be asked now, or when it has done what it has."""
        return now >= self._paused_until and not self.suspect

    def reads(self, shards: frozenset[int]) -> bool:
        """Whether it reads all of these shards."""
        return self.shards is None or shards <= self.shards

    def can_do(self, piece: Piece) -> bool:
        """Whether it reads all shards of a piece."""
        return self.shards is None or piece.shards <= self.shards

    def reads_some(self, shards: frozenset[int]) -> bool:
        """Whether it reads one of these shards or more."""
        return self.shards is None or not shards.isdisjoint(self.shards)


def rows_of_a_request(usual: int, servers: list[Server], row_bytes: float) -> int:
    """Return how many rows to ask for at once: ``usual``, or more where these are small and quick to make.

    A request costs client and server half a millisecond each, whatever it asks for.
    """
    slowest = max((server.row_seconds for server in servers), default=_FIRST_ROW_SECONDS)
    return max(usual, int(min(_QUICK_SECONDS / max(slowest, 1e-6), _SMALL_BYTES / max(row_bytes, 1.0), _MANY_ROWS)))


def cut_step(step: Step, servers: list[Server], rows_per_request: int) -> list[Piece]:
    """Cut a step into pieces that each go to one server.

    Rows whose shards are read by different servers are kept apart. Where several servers read a
    row's shard, the block's number prefers one of them, so that each server's page cache sees the
    same blocks again; steps of few rows prefer fewer servers, for a request has its cost.
    """
    groups = _by_holders(step, np.arange(step.rows), servers)
    pieces: list[Piece] = []
    for able, rows in groups.items():
        buckets = max(1, len(able))
        parts = max(1, min(buckets, len(rows) // _FEWEST_ROWS))
        part = None if parts == 1 else step.block[rows] % buckets * parts // buckets
        for number in range(parts):
            friends = [name for bucket, name in enumerate(able) if bucket * parts // buckets == number]
            preferred = friends[step.number % len(friends)] if friends else None
            mine = rows if part is None else rows[part == number]
            firsts = range(0, len(mine), rows_per_request)
            pieces += [Piece(step, mine[first : first + rows_per_request], preferred) for first in firsts]
    return pieces


def recut(piece: Piece, servers: list[Server]) -> list[Piece]:
    """Cut a piece that is asked of nobody so that each part goes to one of the servers that there are by now.

    It was cut for others. It comes back as it is where the same servers read all its rows.
    """
    if len(piece.shards) == 1:
        return [piece]
    groups = _by_holders(piece.step, piece.select, servers)
    if len(groups) == 1:
        return [piece]
    return [piece.part(rows, able[piece.step.number % len(able)] if able else None) for able, rows in groups.items()]


def one_row_a_shard(pieces: list[Piece]) -> Piece | None:
    """Return the first row of each shard in some pieces of one step, to name the shards by; None for no pieces."""
    if not pieces:
        return None
    rows = np.sort(np.concatenate([piece.select for piece in pieces]))
    _, first = np.unique(pieces[0].step.shard[rows], return_index=True)
    return pieces[0].part(rows[np.sort(first)], None)


def _by_holders(step: Step, rows: NDArray[np.int64], servers: list[Server]) -> dict[tuple[str, ...], NDArray[np.int64]]:
    """Group rows by the names of the servers that read their shards."""
    ordered = sorted(servers, key=lambda server: server.name)
    if all(server.shards is None for server in servers):
        return {tuple(server.name for server in ordered): rows}
    shard = step.shard[rows]
    holders = {
        number: tuple(server.name for server in ordered if server.reads(frozenset([number])))
        for number in np.unique(shard).tolist()
    }
    groups = {}
    for able in dict.fromkeys(holders.values()):  # no set: the order must be the same in every process
        theirs = [number for number, names in holders.items() if names == able]
        groups[able] = rows[np.isin(shard, theirs)]
    return groups
