"""The fetcher against simulated clusters: exactly the planned steps in order, or an error within the timeout."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from functools import cache
from typing import Any

import pytest

from shardfeed.fetcher import Fetcher, FetchLimits
from shardfeed.routing import Piece
from shardfeed_wire.errors import StarvedError
from tests.client.simulation import Outcome, Schedule, run_schedule, simulate
from tests.client.simulation_clock import Clock

SCHEDULES, A_TEST = 2000, 100
COUNTED = 400
"""The first so many schedules reach everything."""


@cache
def outcome(seed: int) -> Outcome:
    return simulate(seed)


def batch(first: int) -> Any:
    """The schedules that are counted run in one process, which keeps them; the others anywhere."""
    return pytest.param(first, marks=pytest.mark.xdist_group("simulation" if first < COUNTED else f"from {first}"))


@pytest.mark.parametrize("first", [batch(first) for first in range(0, SCHEDULES, A_TEST)])
def test_every_schedule_delivers_all_in_order_or_raises_in_time(first: int) -> None:
    for seed in range(first, first + A_TEST):
        outcome(seed)


@pytest.mark.xdist_group("simulation")
def test_the_schedules_reach_what_they_are_for() -> None:
    happened: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for seed in range(COUNTED):
        happened += outcome(seed).happened
        ends[type(outcome(seed).error).__name__] += 1
    wanted = (
        "answers twice",
        "busy",
        "crashes",
        "drains",
        "evacuated",
        "given up as killers",
        "given up as unreadable",
        "hangs",
        "jumps",
        "killer requests",
        "lost messages",
        "pings",
        "restarts with other data",
        "retried",
        "rows_hedged",
        "stale",
        "starved for lost shards",
        "unnoticed crashes",
        "waits said",
    )
    assert [name for name in wanted if happened[name] < 5] == []
    assert ends["NoneType"] > COUNTED // 2
    assert all(ends[name] > 5 for name in ("StarvedError", "SampleError", "ShardError"))


@pytest.mark.xdist_group("simulation")
def test_a_seed_replays_alike() -> None:
    for seed in range(5):
        assert str(simulate(seed)) == str(outcome(seed))


def test_a_stopped_process_hears_what_came_meanwhile_in_its_order() -> None:
    # Seed 15776 once heard of a server's return before its loss: the times of both were rounded differently.
    simulate(15776)
    clock = Clock(random.Random(0))
    clock.jump(0.0)
    heard: list[int] = []
    for number in range(1000):
        clock.at(number * 1e-3, lambda number=number: clock.in_client(0.0, lambda: heard.append(number)))
    while len(heard) < 1000:
        clock.step()
    assert heard == list(range(1000))


def test_a_process_that_was_stopped_often_may_be_a_tick_later_for_each() -> None:
    outcome = simulate(58047)
    assert isinstance(outcome.error, StarvedError)
    assert outcome.happened["jumps"] > 3


@pytest.mark.parametrize("seed", [42998, 55740])
def test_a_process_that_was_stopped_goes_on_asking_a_server_whose_answer_came_meanwhile(seed: int) -> None:
    # Its pace came out below 0 by rounding, and no server was quick enough beside it.
    assert simulate(seed).error is None


def test_a_server_twenty_times_slower_costs_less_than_a_third_more() -> None:
    quick = run_schedule(Schedule.without_faults(1e-3, 1e-3)).seconds
    for seed in range(3):
        assert run_schedule(Schedule.without_faults(1e-3, 1e-3, 20e-3), seed).seconds < 1.3 * quick


def test_healthy_saturated_servers_lose_little_to_second_requests() -> None:
    for seed in range(3):
        happened = run_schedule(Schedule.without_faults(1e-3, 1e-3, 1e-3), seed).happened
        assert happened["rows_sent"] >= 200 * 64
        assert happened["rows_hedged"] < 0.03 * happened["rows_sent"]


# Planted defects: each must be noticed, or the checks check nothing.


class _WithoutRetry(Fetcher):
    def _ask_again(self, piece: Piece, request: int) -> None:
        piece.requests.remove(request)


class _WithoutDeduplication(Fetcher):
    def _answered(self, name: str, request: int, answer: object, size: int, actions: list[Any]) -> None:
        asked = self._asked.get(request)
        super()._answered(name, request, answer, size, actions)
        if asked is not None:
            asked.piece.answer = None
            self._asked[request] = asked
            super()._answered(name, request, answer, size, actions)


class _WithoutOrder(Fetcher):
    def _deliver(self, actions: list[Any]) -> None:
        self._flights.rotate(-1)
        super()._deliver(actions)


class _WithoutMemoryOfDeaths(Fetcher):
    def _server_down(self, name: str, reason: str, actions: list[Any]) -> None:
        for asked in self._asked.values():
            asked.piece.deaths = -1
        super()._server_down(name, reason, actions)


class _WithoutRecut(Fetcher):
    def _fit(self, piece: Piece) -> list[Piece]:
        return [piece]


class _WithoutPauses(Fetcher):
    def _declined(self, name: str, request: int, reason: str, message: str, actions: list[Any]) -> None:
        for piece in {asked.piece for asked in self._asked.values()}:
            piece._refusals = {server: (times, 0.0) for server, (times, _) in piece._refusals.items()}
        super()._declined(name, request, reason, message, actions)
        for piece in self._pending:
            piece._refusals = {server: (times, 0.0) for server, (times, _) in piece._refusals.items()}


def _with_limits(**changed: float) -> Any:
    def make(steps: Any, limits: FetchLimits, **rest: Any) -> Fetcher:
        return Fetcher(steps, dataclasses.replace(limits, **changed), **rest)

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(_WithoutRetry, "some servers were always well", id="no retry"),
        pytest.param(_WithoutDeduplication, "", id="no dedupe"),
        pytest.param(_WithoutOrder, "delivers step", id="no order"),
        pytest.param(_with_limits(timeout=math.inf), "silent after", id="no timeout"),
        pytest.param(_with_limits(prefetch_bytes=1 << 60), "bytes,", id="no window"),
        pytest.param(_with_limits(extra_work=1e9), "hedged", id="no budget"),
        pytest.param(_WithoutMemoryOfDeaths, "let one request kill", id="no count of deaths"),
        pytest.param(_WithoutRecut, "some servers were always well", id="no cutting anew"),
        pytest.param(_WithoutPauses, "gave a shard up after", id="no pauses"),
    ],
)
def test_a_planted_defect_is_noticed(make: Any, says: str) -> None:
    found = []
    for seed in range(SCHEDULES):
        try:
            simulate(seed, make)
        except Exception as error:
            found.append(str(error))
            if says in found[-1]:
                return
    pytest.fail(f"{says!r} was never said, but {set(found)}")
