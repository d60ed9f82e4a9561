"""A simulated cluster for the fetcher: servers that crash, restart, hang, refuse and lose messages, on a virtual clock.

One seed is one schedule. `simulate` runs a fetcher through it, checks after every event that the fetcher
keeps its promises, and returns how it ended; a broken promise is an AssertionError that names the seed.
Other fetchers than the real one may be put in (``make``), to see that the checks notice.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shardfeed.fetcher import (
    Action,
    Answered,
    AskWhetherAlive,
    Cancel,
    Declined,
    Deliver,
    Event,
    Fetcher,
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
from shardfeed.routing import Piece, Step
from shardfeed_wire.errors import SampleError, ShardfeedError

TICK = 0.05
SHARDS, BLOCKS_A_SHARD = 6, 4
MOST_EVENTS = 400_000

Make = Callable[..., Fetcher]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What one seed does to the cluster. Rates are per second and server; probabilities are per message."""

    gentle: bool
    """One server is always well and reads everything, at most two faults befall the others: all must be delivered."""
    servers: int
    whole: bool
    steps: tuple[int, ...]
    row_bytes: float
    varying_rows: bool
    limits: FetchLimits
    crash_rate: float
    hang_rate: float
    jump_rate: float
    most_faults: float
    lost: float
    twice: float
    busy: float
    unreadable: float
    other_data: float
    killer: int | None
    trainer_seconds: float

    @classmethod
    def of(cls, chance: random.Random) -> Schedule:
        """Draw a schedule."""
        gentle = chance.random() < 0.5
        steps = tuple([chance.randint(1, 64)] * chance.randint(1, 40))
        row_bytes = chance.choice([10.0, 1e5])
        timeout = chance.choice([12.0, 40.0])
        return cls(
            gentle=gentle,
            servers=chance.randint(1 if not gentle else 2, 4),
            whole=chance.random() < 0.6,
            steps=(*steps[1:], chance.randint(1, steps[0])),
            row_bytes=row_bytes,
            varying_rows=chance.random() < 0.3,
            limits=FetchLimits(
                prefetch_bytes=round(row_bytes * steps[0] * chance.uniform(0.5, 8.0)),
                timeout=40.0 if gentle else timeout,  # two servers may fall silent for 10 s each, one after the other
                row_bytes=row_bytes,
                rows_per_request=chance.choice([8, 256]),
            ),
            crash_rate=chance.choice([0.0, 0.05, 0.5]),
            hang_rate=chance.choice([0.0, 0.05]),
            jump_rate=chance.choice([0.0, 0.02]),
            most_faults=2 if gentle else math.inf,
            lost=0.0 if gentle else chance.choice([0.0, 0.0, 0.02]),
            twice=chance.choice([0.0, 0.1]),
            busy=chance.choice([0.0, 0.3]),
            unreadable=chance.choice([0.0, 0.0, 0.1]),
            other_data=chance.choice([0.0, 0.5]),
            killer=None if gentle or chance.random() < 0.8 else chance.randrange(len(steps)),
            trainer_seconds=chance.choice([0.0, 0.01, 0.3]),
        )


@dataclass(slots=True)
class Outcome:
    """How a schedule ended, and how often things happened on the way."""

    delivered: int = 0
    error: ShardfeedError | None = None
    seconds: float = 0.0
    happened: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Server:
    name: str
    slots: int
    shards: frozenset[int] | None
    row_seconds: float
    latency: float
    never_fails: bool
    always_busy: bool
    alive: bool = True
    connected: bool = False
    up: bool = False  # as the client knows it
    connection: int = 0
    other_data: bool = False
    draining: bool = False
    hung_until: float = 0.0
    busy_until: float = 0.0
    cancelled: set[int] = field(default_factory=set)


class _Simulation:
    def __init__(self, seed: int, make: Make) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.schedule = Schedule.of(self.chance)
        self.outcome = Outcome()
        self.now = 0.0
        self.jumped = 0.0
        self.frozen_until = 0.0
        self.faults = 0
        self.order = itertools.count()
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.servers = {server.name: server for server in map(self._server, range(self.schedule.servers))}
        self.outstanding: dict[int, Send] = {}
        self.asked: set[Piece] = set()
        self.untaken_steps: set[int] = set()  # asked for, and not taken by the trainer
        self.answered: set[Piece] = set()
        self.untaken: list[Deliver] = []
        self.delivered: list[int] = []
        self.useful = 0.0
        self.trainer_waits = True
        self.over = False
        self.fetcher = make(self._steps(), self.schedule.limits, describe=lambda piece: f"rows {piece.select}", now=0.0)

    # The plan

    def _steps(self) -> Iterator[Step]:
        consumed = 0
        plan = random.Random(self.seed + 1)
        for number, rows in enumerate(self.schedule.steps):
            consumed += rows
            block = np.array([plan.randrange(SHARDS * BLOCKS_A_SHARD) for _ in range(rows)], np.uint32)
            positions = np.arange(consumed - rows, consumed)
            index = np.zeros(rows, np.uint16)
            shard = block // np.uint32(BLOCKS_A_SHARD)
            yield Step(number, 0, consumed, block, index, shard, positions, np.zeros(rows, np.bool_))

    def _server(self, number: int) -> _Server:
        chance = self.chance
        well = self.schedule.gentle and number == 0
        partial = not self.schedule.whole and not well
        readable = frozenset(chance.sample(range(SHARDS), chance.randint(1, SHARDS))) if partial else None
        return _Server(
            name=f"server-{number}",
            slots=chance.randint(1, 5),
            shards=readable,
            row_seconds=10 ** chance.uniform(-4, -2),
            latency=10 ** chance.uniform(-4, -1),
            never_fails=well,
            always_busy=not well and chance.random() < 0.1,
        )

    # The clock

    def run(self) -> Outcome:
        for server in self.servers.values():
            late = 0.0 if server.never_fails else self.chance.uniform(0, 0.5)
            self._at(late, lambda server=server: self._connect(server))
        self._at(TICK, self._tick)
        self._at(self._interval(self.schedule.jump_rate), self._jump)
        for _ in range(MOST_EVENTS):
            if self.over:
                break
            self.now, _, happen = heapq.heappop(self.agenda)
            happen()
        else:
            self._check(False, f"came to no end in {MOST_EVENTS} events")
        self.outcome.delivered, self.outcome.seconds = len(self.delivered), self.now
        counters = self.fetcher.counters
        self.outcome.happened.update({name: getattr(counters, name) for name in type(counters).__slots__})
        self._check_outcome()
        return self.outcome

    def _at(self, seconds: float, happen: Callable[[], None]) -> None:
        if seconds < math.inf:
            heapq.heappush(self.agenda, (self.now + seconds, next(self.order), happen))

    def _interval(self, rate: float) -> float:
        return self.chance.expovariate(rate) if rate else math.inf

    def _jump(self) -> None:
        """Stop the client's process for a while."""
        length = self.chance.uniform(3, 60)
        self.frozen_until, self.jumped = self.now + length, self.jumped + length
        self.outcome.happened["jumps"] += 1
        self._at(length + self._interval(self.schedule.jump_rate), self._jump)

    def _in_client(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen in the client's process, which may be stopped then."""

        def when_running() -> None:
            if self.over:
                return
            if self.now < self.frozen_until:
                self._at(self.frozen_until - self.now, when_running)
            else:
                happen()

        self._at(seconds, when_running)

    # The client: what session, feed and trainer do

    def _tell(self, event: Event, seconds: float = 0.0) -> None:
        self._in_client(seconds, lambda: self._handle(event))

    def _handle(self, event: Event) -> None:
        if isinstance(event, Answered):
            sent = self.outstanding.pop(event.request, None)
            if sent is not None and sent.piece not in self.answered:
                self.answered.add(sent.piece)
                self.useful = self._own_time()
        elif isinstance(event, Declined):
            self.outstanding.pop(event.request, None)
        elif isinstance(event, ServerUp):
            self.servers[event.server].up = True
        elif isinstance(event, ServerDown):
            self._forget(event.server)
        for action in self.fetcher.handle(event, self.now):
            if self.over:
                raise self._broken(f"does {action} after the end")
            self._perform(action)
        self._check_window()
        self._check_patience()
        if self.fetcher.done and not self.untaken:
            self.over = True

    def _own_time(self) -> float:
        return self.now - self.jumped

    def _forget(self, name: str) -> None:
        self.servers[name].up = False
        for request in [number for number, sent in self.outstanding.items() if sent.server == name]:
            del self.outstanding[request]

    def _tick(self) -> None:
        self._in_client(0.0, lambda: self._handle(Tick()))
        self._at(TICK, self._tick)

    def _perform(self, action: Action) -> None:
        match action:
            case Send():
                self._send(action)
            case Cancel(name, request):
                sent = self.outstanding.pop(request, None)
                self._check(sent is not None and sent.server == name, f"cancels request {request}, which is not asked")
                self._at(self._delay(self.servers[name]), lambda: self.servers[name].cancelled.add(request))
            case Deliver():
                self._deliver(action)
            case AskWhetherAlive(name):
                self.outcome.happened["pings"] += 1
                self._at(self._delay(self.servers[name]), lambda: self._pong(self.servers[name]))
            case GiveUp(name):
                self._forget(name)
                self._disconnect(self.servers[name], "given up")
            case Waiting():
                self.outcome.happened["waits said"] += 1
            case Raise(error):
                self.outcome.error = error
                self.over = True

    def _send(self, sent: Send) -> None:
        server, piece = self.servers[sent.server], sent.piece
        self._check(server.up, f"asks {sent.server}, which is not up")
        self._check(sent.request not in self.outstanding, f"uses request number {sent.request} twice")
        self._check(server.shards is None or piece.shards <= server.shards, "asks a server for shards it lacks")
        self.outstanding[sent.request] = sent
        held = sum(other.server == sent.server for other in self.outstanding.values())
        self._check(held <= server.slots, f"{held} requests at {sent.server}, which takes {server.slots}")
        if piece in self.asked:
            self.outcome.happened["rows asked again"] += piece.rows
        self.asked.add(piece)
        self.untaken_steps.add(piece.step.number)
        connection = server.connection
        self._at(self._delay(server), lambda: self._arrive(server, connection, sent))

    def _deliver(self, delivered: Deliver) -> None:
        step = delivered.step
        self._check(step.number == len(self.delivered), f"delivers step {step.number} as number {len(self.delivered)}")
        self._check(step.rows == self.schedule.steps[step.number], f"delivers {step.rows} rows for step {step.number}")
        rows = sorted(row for piece in delivered.pieces for row in piece.select.tolist())
        self._check(rows == list(range(step.rows)), f"delivers other rows than those of step {step.number}")
        for piece in delivered.pieces:
            self._check(piece.answer == _answer_to(piece), "delivers another piece's answer")
        self.delivered.append(step.number)
        self.untaken.append(delivered)
        if self.trainer_waits:
            self._in_client(0.0, self._take)
            self.trainer_waits = False

    def _take(self) -> None:
        """The trainer asks for the next batch."""
        if not self.untaken:
            self.trainer_waits = True
            return
        self.untaken_steps.discard(self.untaken.pop(0).step.number)
        if not self.untaken:
            self.useful = max(self.useful, self._own_time())
        self._handle(Taken())
        if not self.over:
            self._in_client(self.schedule.trainer_seconds * self.chance.random(), self._take)

    # The servers

    def _delay(self, server: _Server) -> float:
        return server.latency * self.chance.uniform(0.5, 2.0)

    def _connect(self, server: _Server) -> None:
        if server.connected or not server.alive or server.other_data:
            return
        if server.hung_until > self.now:
            self._at(server.hung_until - self.now, lambda: self._connect(server))
            return
        if self.now < self.frozen_until:
            self._at(self.frozen_until - self.now, lambda: self._connect(server))
            return
        server.connected = True
        server.connection += 1
        server.busy_until = self.now
        connection = server.connection
        self._tell(ServerUp(server.name, server.slots, server.shards))
        self._at(self._interval(self.schedule.crash_rate), lambda: self._crash(server, connection))
        self._at(self._interval(self.schedule.hang_rate), lambda: self._hang(server, connection))

    def _disconnect(self, server: _Server, reason: str) -> None:
        if server.connected:
            server.connected = False
            server.connection += 1
            self._tell(ServerDown(server.name, reason))
            self._at(self.chance.uniform(0.1, 2.0), lambda: self._connect(server))

    def _fault(self, server: _Server) -> bool:
        """Whether one more fault may befall the server."""
        if server.never_fails or self.faults >= self.schedule.most_faults:
            return False
        self.faults += 1
        return True

    def _crash(self, server: _Server, connection: int) -> None:
        if server.connection != connection or not self._fault(server):
            return
        if self.chance.random() < 0.3:
            self._drain(server, connection)
        else:
            self._kill(server)

    def _drain(self, server: _Server, connection: int) -> None:
        self.outcome.happened["drains"] += 1
        server.draining = True

        def end() -> None:
            if server.connection == connection:
                self._kill(server)

        self._at(1.0, end)

    def _kill(self, server: _Server) -> None:
        self.outcome.happened["crashes"] += 1
        server.alive = False
        if self.chance.random() < 0.8:
            self._disconnect(server, "killed")
        else:
            self.outcome.happened["unnoticed crashes"] += 1
            server.connection += 1  # what is under way is lost, and nothing says so
        if self.chance.random() < 0.8:
            self._at(self.chance.uniform(0.5, 8.0), lambda: self._restart(server))

    def _restart(self, server: _Server) -> None:
        server.alive, server.draining = True, False
        server.cancelled.clear()
        if self.chance.random() < self.schedule.other_data * 0.5:
            self.outcome.happened["restarts with other data"] += 1
            server.other_data = True
        if server.connected:  # the client never noticed; now the kernel says so
            self._disconnect(server, "connection reset")
        else:
            self._connect(server)

    def _hang(self, server: _Server, connection: int) -> None:
        if server.connection == connection and self._fault(server):
            self.outcome.happened["hangs"] += 1
            server.hung_until = self.now + self.chance.choice([3.0, 15.0, 1e9])

    def _pong(self, server: _Server) -> None:
        if server.alive and server.connected and server.hung_until <= self.now:
            self._tell(Heard(server.name), self._delay(server))

    def _arrive(self, server: _Server, connection: int, sent: Send) -> None:
        """A request reaches a server."""
        if server.connection != connection or not server.alive or not server.connected:
            return
        if server.hung_until > self.now:
            self._at(server.hung_until - self.now, lambda: self._arrive(server, connection, sent))
            return
        if self.schedule.killer == sent.piece.step.number and 0 in sent.piece.select:
            self.outcome.happened["killer requests"] += 1
            self._kill(server)
            return
        reason = self._refusal(server)
        if reason:
            self._tell(Declined(server.name, sent.request, reason, f"it is {reason}"), self._delay(server))
            return
        if self.chance.random() < self.schedule.lost:
            self.outcome.happened["lost messages"] += 1
            return
        work = sent.piece.rows * server.row_seconds * self.chance.uniform(0.5, 2.0)
        server.busy_until = max(server.busy_until, self.now) + work
        self._at(server.busy_until - self.now, lambda: self._finish(server, connection, sent))

    def _refusal(self, server: _Server) -> str | None:
        chance, schedule = self.chance, self.schedule
        if server.other_data:
            return "data_differs"
        if server.draining:
            return "draining"
        if server.always_busy or (not server.never_fails and chance.random() < schedule.busy):
            return "busy"
        if not server.never_fails and chance.random() < schedule.unreadable:
            return "unreadable_shard"
        return None

    def _finish(self, server: _Server, connection: int, sent: Send) -> None:
        if server.connection != connection or not server.alive:
            return
        if server.hung_until > self.now:
            self._at(server.hung_until - self.now, lambda: self._finish(server, connection, sent))
            return
        if sent.request in server.cancelled and self.chance.random() < 0.5:
            return
        row_bytes = self.schedule.row_bytes * (self.chance.uniform(0.5, 1.5) if self.schedule.varying_rows else 1.0)
        size = round(sent.piece.rows * row_bytes)
        answered = Answered(server.name, sent.request, _answer_to(sent.piece), size)
        self._tell(answered, self._delay(server))
        if self.chance.random() < self.schedule.twice:
            self.outcome.happened["answers twice"] += 1
            self._tell(answered, self._delay(server))

    # The promises

    def _check(self, holds: bool, words: str) -> None:
        if not holds:
            raise self._broken(words)

    def _broken(self, words: str) -> AssertionError:
        return AssertionError(f"seed {self.seed}, at {self.now:.3f} s: the fetcher {words}")

    def _check_window(self) -> None:
        """Bytes of rows asked for and not taken stay within the window; one step is always allowed."""
        if self.schedule.varying_rows:
            return
        held = sum(self.schedule.steps[number] for number in self.untaken_steps) * self.schedule.row_bytes
        window = self.schedule.limits.prefetch_bytes
        self._check(len(self.untaken_steps) <= 1 or held <= window + 1, f"holds {held} bytes, {window} are allowed")

    def _check_patience(self) -> None:
        """The trainer does not wait for longer than the timeout without any useful answer."""
        if self.over or self.untaken or self.fetcher.done:
            return
        waited = self._own_time() - self.useful
        most = self.schedule.limits.timeout + 3 * TICK
        self._check(waited <= most, f"is silent after {waited:.1f} s without a useful answer")

    def _check_outcome(self) -> None:
        error = self.outcome.error
        if error is None:
            self._check(len(self.delivered) == len(self.schedule.steps), f"ended after {len(self.delivered)} steps")
        if self.schedule.gentle:
            self._check(error is None, f"raised {error!r}, though one server was always well")
        killed = self.outcome.happened["killer requests"]
        self._check(killed <= self.schedule.limits.deaths + 1, f"let one request kill {killed} servers")
        counters = self.fetcher.counters
        most = self.schedule.limits.rows_per_request + 0.05 * counters.rows_sent
        self._check(counters.rows_hedged <= most, f"hedged {counters.rows_hedged} of {counters.rows_sent} rows")
        if isinstance(error, SampleError):
            self.outcome.happened["given up as killers"] += 1


def _answer_to(piece: Piece) -> Any:
    return ("answer", piece.step.number, tuple(piece.select.tolist()))


def simulate(seed: int, make: Make = Fetcher) -> Outcome:
    """Run the schedule of one seed; raises AssertionError, naming the seed, where the fetcher breaks a promise."""
    return _Simulation(seed, make).run()


if __name__ == "__main__":
    import sys

    for seed in map(int, sys.argv[1:]):
        print(Schedule.of(random.Random(seed)))
        print(simulate(seed))
