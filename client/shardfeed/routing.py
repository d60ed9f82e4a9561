"""What the fetcher knows of a server, and how a step is cut into pieces for the servers there are. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Piece", "Server", "Step", "cut_step"]

_FEWEST_ROWS = 16
"""A piece smaller than this costs more in messages than a warm page cache saves."""

_FIRST_ROW_SECONDS = 1e-3


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
    shards: frozenset[int]
    preferred: str | None
    requests: list[int] = field(default_factory=list)
    answer: object = None
    size: int = 0
    deaths: int = 0
    refusals: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(self.select)

    @property
    def answered(self) -> bool:
        """Whether its answer is here."""
        return self.answer is not None


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
    _learned: bool = False
    _answered: float = 0.0
    _paused_until: float = 0.0
    _pause: float = 0.0

    def take(self, rows: int) -> None:
        """Count a request that was sent."""
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
        self._learned, self._answered, self._pause = True, now, 0.0

    def finish(self, rows: int) -> float:
        """Return the seconds after which it is expected to have done ``rows`` more rows."""
        return (self.rows + rows) * self.row_seconds

    def pause(self, now: float, first: float, longest: float) -> None:
        """Ask nothing for a while, longer each time until it answers again."""
        self._pause = min(longest, max(first, 2 * self._pause))
        self._paused_until = now + self._pause

    def free(self, now: float) -> bool:
        """Whether it may be asked."""
        return self.requests < self.slots and now >= self._paused_until

    def reads(self, shards: frozenset[int]) -> bool:
        """Whether it reads all of these shards."""
        return self.shards is None or shards <= self.shards


def cut_step(step: Step, servers: list[Server], rows_per_request: int) -> list[Piece]:
    """Cut a step into pieces that each go to one server.

    Rows whose shards are read by different servers are kept apart. Where several servers read a
    row's shard, the block's number prefers one of them, so that each server's page cache sees the
    same blocks again; steps of few rows prefer fewer servers, for a request has its cost.
    """
    names = sorted(server.name for server in servers)
    whole = [server.name for server in servers if server.shards is None]
    groups: dict[tuple[str, ...], NDArray[np.int64]] = {}
    every = np.arange(step.rows)
    if len(whole) == len(servers):
        groups[tuple(names)] = every
    else:
        holders = {
            shard: tuple(name for name in names if next(s for s in servers if s.name == name).reads(frozenset([shard])))
            for shard in np.unique(step.shard).tolist()
        }
        for able in dict.fromkeys(holders.values()):  # no set: the order must be the same in every process
            mine = [shard for shard, names_ in holders.items() if names_ == able]
            groups[able] = every[np.isin(step.shard, mine)]
    pieces: list[Piece] = []
    for able, rows in groups.items():
        buckets = max(1, len(able))
        parts = max(1, min(buckets, len(rows) // _FEWEST_ROWS))
        part = step.block[rows] % buckets * parts // buckets
        for number in range(parts):
            friends = [name for bucket, name in enumerate(able) if bucket * parts // buckets == number]
            preferred = friends[step.number % len(friends)] if friends else None
            mine_rows = rows[part == number]
            for first in range(0, len(mine_rows), rows_per_request):
                select = mine_rows[first : first + rows_per_request]
                pieces.append(Piece(step, select, frozenset(np.unique(step.shard[select]).tolist()), preferred))
    return pieces
