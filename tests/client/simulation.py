"""The fetcher in a simulated cluster, on a virtual clock.

One seed is one schedule. `simulate` runs a fetcher through it, checks after every event that the fetcher
keeps its promises, and returns how it ended; a broken promise is an AssertionError that names the seed.
Other fetchers than the real one may be put in (``make``), to see that the checks notice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

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
    GiveUp,
    Raise,
    Send,
    ServerDown,
    ServerUp,
    Taken,
    Tick,
    Waiting,
)
from shardfeed.routing import Piece, Step
from shardfeed_wire.errors import SampleError, ShardError, StarvedError
from tests.client.simulation_clock import Clock
from tests.client.simulation_cluster import Cluster, answer_to
from tests.client.simulation_schedule import BLOCKS_A_SHARD, SHARDS, Outcome, Schedule

__all__ = ["Outcome", "Schedule", "run_schedule", "simulate"]

TICK = 0.05
MOST_EVENTS = 400_000
SHORTEST_REFUSAL = 2.9
"""Seconds for which a shard must have been refused before the trainer hears of it."""

Make = Callable[..., Fetcher]


class _Simulation:
    """A client: what session, feed and trainer do, and the promises that are checked."""

    def __init__(self, seed: int, make: Make, schedule: Schedule | None) -> None:
        self.clock = Clock(random.Random(seed))
        self.seed = seed
        self.schedule = schedule or Schedule.of(self.clock.chance)
        self.cluster = Cluster(self.schedule, self.clock, self._tell)
        self.outcome = Outcome(happened=self.clock.happened)
        self.steps: list[Step] = []  # that the fetcher has drawn
        self.outstanding: dict[int, Send] = {}
        self.asked: set[Piece] = set()
        self.largest_request = 0
        self.untaken_steps: set[int] = set()  # asked for, and not taken by the trainer
        self.answered: set[Piece] = set()
        self.untaken: list[Deliver] = []
        self.delivered: list[int] = []
        self.first_unreadable: dict[int, float] = {}  # of each step
        self.useful = 0.0
        self.trainer_waits = True
        self.fetcher = make(self._steps(), self.schedule.limits, describe=_describe, now=0.0)

    def _steps(self) -> Iterator[Step]:
        consumed = 0
        plan = random.Random(self.seed + 1)
        for number, rows in enumerate(self.schedule.steps):
            consumed += rows
            block = np.array([plan.randrange(SHARDS * BLOCKS_A_SHARD) for _ in range(rows)], np.uint32)
            positions = np.arange(consumed - rows, consumed)
            index = np.zeros(rows, np.uint16)
            shard = block // np.uint32(BLOCKS_A_SHARD)
            step = Step(number, 0, consumed, block, index, shard, positions, np.zeros(rows, np.bool_))
            self.steps.append(step)
            yield step

    def run(self) -> Outcome:
        self.cluster.start()
        self.clock.at(TICK, self._tick)
        rate = self.schedule.jump_rate
        self.clock.at(self.clock.interval(rate), lambda: self.clock.jump(rate))
        for _ in range(MOST_EVENTS):
            if self.clock.over:
                break
            self.clock.step()
        else:
            self._check(False, f"came to no end in {MOST_EVENTS} events")
        self.outcome.delivered, self.outcome.seconds = len(self.delivered), self.clock.now
        counters = self.fetcher.counters
        self.outcome.happened.update({name: getattr(counters, name) for name in type(counters).__slots__})
        self._check_outcome()
        return self.outcome

    # The session

    def _tell(self, event: Event, seconds: float = 0.0) -> None:
        self.clock.in_client(seconds, lambda: self._handle(event))

    def _handle(self, event: Event) -> None:
        match event:
            case Answered(_, request):
                self._note_answer(self.outstanding.pop(request, None))
            case Declined(_, request, reason):
                sent = self.outstanding.pop(request, None)
                if sent is not None and reason == "unreadable_shard":
                    self.first_unreadable.setdefault(sent.piece.step.number, self.clock.now)
            case ServerUp(name):
                self.cluster.servers[name].up = True
            case ServerDown(name):
                self._forget(name)
        for action in self.fetcher.handle(event, self.clock.now):
            if self.clock.over:
                raise self._broken(f"does {action} after the end")
            self._perform(action)
        self._check_window()
        self._check_patience()
        if self.fetcher.done and not self.untaken:
            self.clock.over = True

    def _note_answer(self, sent: Send | None) -> None:
        if sent is not None and sent.piece not in self.answered:
            self.answered.add(sent.piece)
            if sent.piece.step.number == len(self.delivered):
                self.useful = self.clock.own_time

    def _forget(self, name: str) -> None:
        self.cluster.servers[name].up = False
        for request in [number for number, sent in self.outstanding.items() if sent.server == name]:
            del self.outstanding[request]

    def _tick(self) -> None:
        self.clock.in_client(0.0, lambda: self._handle(Tick()))
        self.clock.at(TICK, self._tick)

    def _perform(self, action: Action) -> None:
        match action:
            case Send():
                self._send(action)
            case Cancel(name, request):
                sent = self.outstanding.pop(request, None)
                self._check(sent is not None and sent.server == name, f"cancels request {request}, which is not asked")
                self.cluster.cancel(name, request)
            case Deliver():
                self._deliver(action)
            case AskWhetherAlive(name):
                self.outcome.happened["pings"] += 1
                self.cluster.ping(name)
            case GiveUp(name):
                self._forget(name)
                self.cluster.disconnect(name)
            case Waiting():
                self.outcome.happened["waits said"] += 1
            case Raise(error):
                self.outcome.error = error
                self.clock.over = True

    def _send(self, sent: Send) -> None:
        server, piece = self.cluster.servers[sent.server], sent.piece
        self._check(server.up, f"asks {sent.server}, which is not up")
        self._check(sent.request not in self.outstanding, f"uses request number {sent.request} twice")
        self._check(server.reads(piece.shards), "asks a server for shards it lacks")
        self.outstanding[sent.request] = sent
        held = sum(other.server == sent.server for other in self.outstanding.values())
        self._check(held <= server.slots, f"{held} requests at {sent.server}, which takes {server.slots}")
        if piece in self.asked:
            self.outcome.happened["rows asked again"] += piece.rows
        self.asked.add(piece)
        self.largest_request = max(self.largest_request, piece.rows)
        self.untaken_steps.add(piece.step.number)
        self.cluster.ask(sent)

    def _deliver(self, delivered: Deliver) -> None:
        step = delivered.step
        self._check(step.number == len(self.delivered), f"delivers step {step.number} as number {len(self.delivered)}")
        self._check(step.rows == self.schedule.steps[step.number], f"delivers {step.rows} rows for step {step.number}")
        rows = sorted(row for piece in delivered.pieces for row in piece.select.tolist())
        self._check(rows == list(range(step.rows)), f"delivers other rows than those of step {step.number}")
        for piece in delivered.pieces:
            self._check(piece.answer == answer_to(piece), "delivers another piece's answer")
        self.delivered.append(step.number)
        self.untaken.append(delivered)
        self.useful = self.clock.own_time
        if self.trainer_waits:
            self.clock.in_client(0.0, self._take)
            self.trainer_waits = False

    def _take(self) -> None:
        """The trainer asks for the next batch."""
        if not self.untaken:
            self.trainer_waits = True
            return
        self.untaken_steps.discard(self.untaken.pop(0).step.number)
        if not self.untaken:
            self.useful = max(self.useful, self.clock.own_time)
        self._handle(Taken())
        if not self.clock.over:
            self.clock.in_client(self.schedule.trainer_seconds * self.clock.chance.random(), self._take)

    # The promises

    def _check(self, holds: bool, words: str) -> None:
        if not holds:
            raise self._broken(words)

    def _broken(self, words: str) -> AssertionError:
        return AssertionError(f"seed {self.seed}, at {self.clock.now:.3f} s: the fetcher {words}")

    def _check_window(self) -> None:
        """Bytes of rows asked for and not taken stay within the window; one step is always allowed."""
        if self.schedule.varying_rows:
            return
        held = sum(self.schedule.steps[number] for number in self.untaken_steps) * self.schedule.row_bytes
        window = self.schedule.limits.prefetch_bytes
        self._check(len(self.untaken_steps) <= 1 or held <= window + 1, f"holds {held} bytes, {window} are allowed")

    def _check_patience(self) -> None:
        """The trainer does not wait for longer than the timeout without a useful answer to its next batch."""
        if self.clock.over or self.untaken or self.fetcher.done:
            return
        waited = self.clock.own_time - self.useful
        # Of each stop the fetcher sees the gap between two ticks, which is up to a tick longer than the stop.
        most = self.schedule.limits.timeout + (3 + self.outcome.happened["jumps"]) * TICK
        self._check(waited <= most, f"is silent after {waited:.1f} s without a useful answer")

    def _check_outcome(self) -> None:
        error = self.outcome.error
        if error is None:
            self._check(len(self.delivered) == len(self.schedule.steps), f"ended after {len(self.delivered)} steps")
        if self.schedule.well:
            self._check(error is None, f"raised {error!r}, though some servers were always well")
        killed = self.outcome.happened["killer requests"]
        self._check(killed <= self.schedule.limits.deaths + 1, f"let one request kill {killed} servers")
        counters = self.fetcher.counters
        most = self.largest_request + 0.05 * counters.rows_sent
        self._check(counters.rows_hedged <= most, f"hedged {counters.rows_hedged} of {counters.rows_sent} rows")
        match error:
            case SampleError():
                self.outcome.happened["given up as killers"] += 1
            case ShardError():
                refused = self.clock.now - min(self.first_unreadable.values())
                self._check(refused >= SHORTEST_REFUSAL, f"gave a shard up after {refused:.2f} s")
                self.outcome.happened["given up as unreadable"] += 1
            case StarvedError():
                self._check_names(str(error))

    def _check_names(self, said: str) -> None:
        """Who starved is told of every server, and of the shards that nobody reads any more."""
        for server in self.cluster.servers.values():
            if server.up:
                self._check(server.name in said, f"says nothing of {server.name}: {said}")
        orphans = self._orphans()
        if orphans:
            self.outcome.happened["starved for lost shards"] += 1
            self._check(f"No server that is up reads shards {orphans}" in said, f"names not {orphans}: {said}")

    def _orphans(self) -> list[int]:
        """The shards that the next step still needs, and no server reads that is up."""
        if len(self.steps) == len(self.delivered):
            return []
        step = self.steps[len(self.delivered)]
        here = {row for piece in self.answered if piece.step is step for row in piece.select.tolist()}
        needed = {int(shard) for row, shard in enumerate(step.shard) if row not in here}
        up = [server for server in self.cluster.servers.values() if server.up]
        return sorted(shard for shard in needed if not any(server.reads(frozenset([shard])) for server in up))


def _describe(piece: Piece) -> str:
    return f"shards {sorted(piece.shards)}"


def run_schedule(schedule: Schedule, seed: int = 0, make: Make = Fetcher) -> Outcome:
    """Run a given schedule; the seed draws what it leaves open."""
    return _Simulation(seed, make, schedule).run()


def simulate(seed: int, make: Make = Fetcher) -> Outcome:
    """Run the schedule of one seed; raises AssertionError, naming the seed, where the fetcher breaks a promise."""
    return _Simulation(seed, make, None).run()
