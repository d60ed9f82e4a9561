"""Simulated loader servers: they crash, restart, drain, hang, refuse, and lose and repeat messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shardfeed.fetcher import Answered, Declined, Event, Heard, Send, ServerDown, ServerUp
from shardfeed.routing import Piece
from tests.client.simulation_clock import Clock
from tests.client.simulation_schedule import SHARDS, Schedule

__all__ = ["Cluster", "SimulatedServer", "answer_to"]

LATEST_WELL = 2.0
"""A server that never fails is there before a shard is given up as unreadable."""


@dataclass(slots=True)
class SimulatedServer:
    """One server. `up` is what the client knows of it."""

    name: str
    slots: int
    shards: frozenset[int] | None
    row_seconds: float
    latency: float
    never_fails: bool
    always_busy: bool
    unreadable: frozenset[int]
    alive: bool = True
    connected: bool = False
    up: bool = False
    connection: int = 0
    other_data: bool = False
    draining: bool = False
    hung_until: float = 0.0
    busy_until: float = 0.0
    cancelled: set[int] = field(default_factory=set)

    def reads(self, shards: frozenset[int]) -> bool:
        """Whether it says that it reads all of these shards."""
        return self.shards is None or shards <= self.shards


def answer_to(piece: Piece) -> Any:
    """Return what a server answers: it names the rows."""
    return ("answer", piece.step.number, tuple(piece.select.tolist()))


class Cluster:
    """The servers of a schedule. ``tell`` is called, after some seconds, with what the client sees."""

    def __init__(self, schedule: Schedule, clock: Clock, tell: Callable[[Event, float], None]) -> None:
        self._schedule, self._clock, self._tell = schedule, clock, tell
        self._chance = clock.chance
        self._faults = 0
        self._half = frozenset(self._chance.sample(range(SHARDS), SHARDS // 2))
        self.servers = {server.name: server for server in map(self._server, range(schedule.servers))}

    def start(self) -> None:
        """Let the servers come up, one after the other."""
        for server in self.servers.values():
            latest = self._schedule.latest_start
            late = self._chance.uniform(0, min(latest, LATEST_WELL) if server.never_fails else latest)
            self._clock.at(late, lambda server=server: self._connect(server))

    def ask(self, sent: Send) -> None:
        """Bring a request on its way."""
        server = self.servers[sent.server]
        connection = server.connection
        self._clock.at(self._delay(server), lambda: self._arrive(server, connection, sent))

    def cancel(self, name: str, request: int) -> None:
        """Bring a cancellation on its way."""
        server = self.servers[name]
        self._clock.at(self._delay(server), lambda: server.cancelled.add(request))

    def ping(self, name: str) -> None:
        """Bring a Ping on its way."""
        server = self.servers[name]
        self._clock.at(self._delay(server), lambda: self._pong(server))

    def disconnect(self, name: str) -> None:
        """End the connection from the client's side."""
        self._disconnect(self.servers[name], "given up")

    def _server(self, number: int) -> SimulatedServer:
        chance, schedule = self._chance, self._schedule
        well = number < schedule.well
        shards: frozenset[int] | None = None
        if schedule.well == 2 and well:
            shards = self._half if number == 0 else frozenset(range(SHARDS)) - self._half
        elif not schedule.whole and not well:
            shards = frozenset(chance.sample(range(SHARDS), chance.randint(1, SHARDS)))
        bad = frozenset(shard for shard in range(SHARDS) if chance.random() < schedule.unreadable_shards)
        given = schedule.row_seconds
        return SimulatedServer(
            name=f"server-{number}",
            slots=chance.randint(1, 5) if given is None else 3,
            shards=shards,
            row_seconds=10 ** chance.uniform(-4, -2) if given is None else given[number],
            latency=10 ** chance.uniform(-4, -1) if given is None else 1e-3,
            never_fails=well or given is not None,
            always_busy=not well and given is None and chance.random() < 0.1,
            unreadable=frozenset() if well else bad,
        )

    def _delay(self, server: SimulatedServer) -> float:
        return server.latency * self._chance.uniform(0.5, 2.0)

    # Connections

    def _connect(self, server: SimulatedServer) -> None:
        if server.connected or not server.alive or server.other_data:
            return
        if server.hung_until > self._clock.now:
            self._clock.at(server.hung_until - self._clock.now, lambda: self._connect(server))
            return
        self._clock.in_client(0.0, lambda: self._greet(server))

    def _greet(self, server: SimulatedServer) -> None:
        if server.connected or not server.alive or server.other_data or server.hung_until > self._clock.now:
            self._connect(server)
            return
        server.connected = True
        server.connection += 1
        server.busy_until = self._clock.now
        connection = server.connection
        self._tell(ServerUp(server.name, server.slots, server.shards), 0.0)
        self._clock.at(self._clock.interval(self._schedule.crash_rate), lambda: self._crash(server, connection))
        self._clock.at(self._clock.interval(self._schedule.hang_rate), lambda: self._hang(server, connection))

    def _disconnect(self, server: SimulatedServer, reason: str) -> None:
        if server.connected:
            server.connected = False
            server.connection += 1
            self._tell(ServerDown(server.name, reason), 0.0)
            self._clock.at(self._chance.uniform(0.1, 2.0), lambda: self._connect(server))

    # Faults

    def _fault(self, server: SimulatedServer) -> bool:
        """Whether one more fault may befall the server."""
        if server.never_fails or self._faults >= self._schedule.most_faults:
            return False
        self._faults += 1
        return True

    def _crash(self, server: SimulatedServer, connection: int) -> None:
        if server.connection != connection or not self._fault(server):
            return
        if self._chance.random() < 0.3:
            self._drain(server, connection)
        else:
            self._kill(server)

    def _drain(self, server: SimulatedServer, connection: int) -> None:
        self._clock.happened["drains"] += 1
        server.draining = True

        def end() -> None:
            if server.connection == connection:
                self._kill(server)

        self._clock.at(1.0, end)

    def _kill(self, server: SimulatedServer) -> None:
        self._clock.happened["crashes"] += 1
        server.alive = False
        if self._chance.random() < 0.8:
            self._disconnect(server, "killed")
        else:
            self._clock.happened["unnoticed crashes"] += 1
            server.connection += 1  # what is under way is lost, and nothing says so
        if self._chance.random() < 0.8:
            self._clock.at(self._chance.uniform(0.5, 8.0), lambda: self._restart(server))

    def _restart(self, server: SimulatedServer) -> None:
        server.alive, server.draining = True, False
        server.cancelled.clear()
        if self._chance.random() < self._schedule.other_data * 0.5:
            self._clock.happened["restarts with other data"] += 1
            server.other_data = True
        if server.connected:  # the client never noticed; now the kernel says so
            self._disconnect(server, "connection reset")
        else:
            self._connect(server)

    def _hang(self, server: SimulatedServer, connection: int) -> None:
        if server.connection == connection and self._fault(server):
            self._clock.happened["hangs"] += 1
            server.hung_until = self._clock.now + self._chance.choice([3.0, 15.0, 1e9])

    # Requests

    def _pong(self, server: SimulatedServer) -> None:
        if not server.alive or not server.connected:
            return
        if server.hung_until > self._clock.now:  # it lies in the kernel's buffer until then
            connection = server.connection
            wakes = server.hung_until - self._clock.now
            self._clock.at(wakes, lambda: self._pong(server) if server.connection == connection else None)
            return
        self._tell(Heard(server.name), self._delay(server))

    def _arrive(self, server: SimulatedServer, connection: int, sent: Send) -> None:
        if server.connection != connection or not server.alive or not server.connected:
            return
        now = self._clock.now
        if server.hung_until > now:
            self._clock.at(server.hung_until - now, lambda: self._arrive(server, connection, sent))
            return
        if self._schedule.killer == sent.piece.step.number and 0 in sent.piece.select:
            self._clock.happened["killer requests"] += 1
            self._kill(server)
            return
        reason = self._refusal(server, sent.piece)
        if reason:
            self._clock.happened[reason] += 1
            self._tell(Declined(server.name, sent.request, reason, f"it is {reason}"), self._delay(server))
            return
        if self._chance.random() < self._schedule.lost:
            self._clock.happened["lost messages"] += 1
            return
        spread = 1.0 if self._schedule.row_seconds else self._chance.uniform(0.5, 2.0)
        work = sent.piece.rows * server.row_seconds * spread
        server.busy_until = max(server.busy_until, now) + work
        self._clock.at(server.busy_until - now, lambda: self._finish(server, connection, sent))

    def _refusal(self, server: SimulatedServer, piece: Piece) -> str | None:
        chance, schedule = self._chance, self._schedule
        if server.other_data:
            return "data_differs"
        if server.draining:
            return "draining"
        if server.always_busy or (not server.never_fails and chance.random() < schedule.busy):
            return "busy"
        if server.unreadable & piece.shards or (not server.never_fails and chance.random() < schedule.unreadable):
            return "unreadable_shard"
        return None

    def _finish(self, server: SimulatedServer, connection: int, sent: Send) -> None:
        if server.connection != connection or not server.alive:
            return
        now = self._clock.now
        if server.hung_until > now:
            self._clock.at(server.hung_until - now, lambda: self._finish(server, connection, sent))
            return
        if sent.request in server.cancelled and self._chance.random() < 0.5:
            return
        row_bytes = self._schedule.row_bytes * (self._chance.uniform(0.5, 1.5) if self._schedule.varying_rows else 1.0)
        answered = Answered(server.name, sent.request, answer_to(sent.piece), round(sent.piece.rows * row_bytes))
        self._tell(answered, self._delay(server))
        if self._chance.random() < self._schedule.twice:
            self._clock.happened["answers twice"] += 1
            self._tell(answered, self._delay(server))
