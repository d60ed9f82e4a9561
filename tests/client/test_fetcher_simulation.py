"""The fetcher against simulated clusters: exactly the planned steps in order, or an error within the timeout."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from functools import cache
from typing import Any

import pytest

from shardfeed.fetcher import Fetcher, FetchLimits
from shardfeed.routing import Piece
from tests.client.simulation import Outcome, simulate

SCHEDULES, A_TEST = 400, 50


@cache
def outcome(seed: int) -> Outcome:
    return simulate(seed)


@pytest.mark.parametrize("first", range(0, SCHEDULES, A_TEST))
def test_every_schedule_delivers_all_in_order_or_raises_in_time(first: int) -> None:
    for seed in range(first, first + A_TEST):
        outcome(seed)


def test_the_schedules_reach_what_they_are_for() -> None:
    happened: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        happened += outcome(seed).happened
        ends[type(outcome(seed).error).__name__] += 1
    wanted = (
        "answers twice",
        "busy",
        "crashes",
        "drains",
        "evacuated",
        "given up as killers",
        "hangs",
        "jumps",
        "killer requests",
        "lost messages",
        "pings",
        "restarts with other data",
        "retried",
        "rows_hedged",
        "stale",
        "unnoticed crashes",
        "waits said",
    )
    assert [name for name in wanted if happened[name] < 5] == []
    assert ends["NoneType"] > SCHEDULES // 2
    assert ends["StarvedError"] > 5
    assert ends["SampleError"] > 5


def test_a_seed_replays_alike() -> None:
    for seed in range(5):
        assert str(simulate(seed)) == str(outcome(seed))


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


def _with_limits(**changed: float) -> Any:
    def make(steps: Any, limits: FetchLimits, **rest: Any) -> Fetcher:
        return Fetcher(steps, dataclasses.replace(limits, **changed), **rest)

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(_WithoutRetry, "one server was always well", id="no retry"),
        pytest.param(_WithoutDeduplication, "", id="no dedupe"),
        pytest.param(_WithoutOrder, "delivers step", id="no order"),
        pytest.param(_with_limits(timeout=math.inf), "silent after", id="no timeout"),
        pytest.param(_with_limits(prefetch_bytes=1 << 60), "bytes,", id="no window"),
        pytest.param(_with_limits(extra_work=1e9), "hedged", id="no budget"),
        pytest.param(_WithoutMemoryOfDeaths, "let one request kill", id="no count of deaths"),
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
