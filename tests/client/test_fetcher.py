"""The fetcher's decisions, one event at a time: no socket, no thread, no clock."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

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
from shardfeed.routing import Piece, Server, Step, cut_step, rows_of_a_request
from shardfeed_wire.errors import BadRequestError, RefusedError, SampleError, ShapeError, ShardError, StarvedError

ROW_BYTES = 100


def step(number: int, rows: int = 8, shards: int = 1) -> Step:
    """A step whose rows come from shards 0 .. ``shards`` - 1 in turn."""
    block = np.arange(rows, dtype=np.uint32)
    return Step(
        number=number,
        epoch=0,
        next_consumed=(number + 1) * rows,
        block=block,
        index=np.zeros(rows, np.uint16),
        shard=np.arange(rows, dtype=np.uint32) % np.uint32(shards),
        positions=np.arange(rows, dtype=np.int64),
        padding=np.zeros(rows, np.bool_),
    )


class Driver:
    """A fetcher, and the time."""

    def __init__(self, steps: int = 3, *, rows: int = 8, shards: int = 1, **limits: float) -> None:
        settings = {"prefetch_bytes": 1 << 40, "timeout": 60.0, "row_bytes": float(ROW_BYTES), **limits}
        self.now = 0.0
        self.fetcher = Fetcher(
            (step(number, rows, shards) for number in range(steps)),
            FetchLimits(**settings),  # type: ignore[arg-type]
            describe=lambda piece: f"step {piece.step.number}",
            now=0.0,
        )

    def tell(self, event: Event, after: float = 0.0) -> list[Action]:
        self.now += after
        return self.fetcher.handle(event, self.now)

    def up(self, server: str, slots: int = 2, shards: frozenset[int] | None = None) -> list[Action]:
        return self.tell(ServerUp(server, slots, shards))

    def answer(self, sent: Send, after: float = 0.001) -> list[Action]:
        return self.tell(Answered(sent.server, sent.request, "answer", sent.piece.rows * ROW_BYTES), after)

    def decline(self, sent: Send, reason: str, after: float = 0.001) -> list[Action]:
        return self.tell(Declined(sent.server, sent.request, reason, f"it says {reason}"), after)

    def ticks(self, seconds: float) -> Iterator[Action]:
        """Let time pass; yield what is done meanwhile."""
        end = self.now + seconds
        while self.now < end:
            yield from self.tell(Tick(), 0.05)


def sends(actions: list[Action]) -> list[Send]:
    return [action for action in actions if isinstance(action, Send)]


def raised(actions: list[Action]) -> Exception:
    assert isinstance(actions[-1], Raise)
    return actions[-1].error


# ------------------------------------------------------------------------------------- the plain way


def test_nothing_is_asked_before_a_server_is_up() -> None:
    driver = Driver()
    assert driver.tell(Tick()) == []
    assert [sent.server for sent in sends(driver.up("a", slots=3))] == ["a", "a", "a"]


def test_a_server_is_asked_for_no_more_than_it_takes_at_once() -> None:
    driver = Driver(steps=5)
    first, _ = sends(driver.up("a", slots=2))
    assert [type(action) for action in driver.answer(first)] == [Deliver, Send]


def test_steps_are_delivered_in_order_whatever_the_order_of_answers() -> None:
    driver = Driver()
    first, second, third = sends(driver.up("a", slots=3))
    assert driver.answer(second) == []
    assert driver.answer(third) == []
    delivered = driver.answer(first)
    assert [action.step.number for action in delivered if isinstance(action, Deliver)] == [0, 1, 2]
    assert driver.fetcher.done


def test_a_step_is_shared_between_servers_and_delivered_whole() -> None:
    driver = Driver(steps=1, rows=64)
    driver.tell(Tick())
    asked = sends([*driver.tell(ServerUp("a", 1)), *driver.tell(ServerUp("b", 1))])
    assert [sent.server for sent in asked] == ["a"]  # b came when the step was cut already
    two = cut_step(step(0, 64), [Server("a", 1, None, 0.0), Server("b", 1, None, 0.0)], rows_per_request=256)
    assert sorted(piece.preferred or "" for piece in two) == ["a", "b"]
    assert sorted(row for piece in two for row in piece.select.tolist()) == list(range(64))


def test_rows_are_kept_apart_by_who_reads_their_shards() -> None:
    pieces = cut_step(
        step(0, 64, shards=2),
        [Server("a", 1, frozenset({0}), 0.0), Server("b", 1, frozenset({1}), 0.0)],
        rows_per_request=10,
    )
    assert all(piece.rows <= 10 for piece in pieces)
    assert {(piece.preferred, piece.shards) for piece in pieces} == {("a", frozenset({0})), ("b", frozenset({1}))}
    assert sorted(row for piece in pieces for row in piece.select.tolist()) == list(range(64))


@pytest.mark.parametrize(
    ("row_seconds", "row_bytes", "rows"),
    [(1e-5, 100.0, 2000), (1e-9, 1.0, 4096), (1e-5, 150_000.0, 256), (1e-4, 100.0, 256), (1e-3, 100.0, 256)],
    ids=["small and quick", "no bound", "large", "slow", "unknown"],
)
def test_more_rows_go_into_a_request_where_they_are_small_and_quick(
    row_seconds: float, row_bytes: float, rows: int
) -> None:
    quick = [Server("a", 1, None, 0.0, row_seconds=row_seconds), Server("b", 1, None, 0.0, row_seconds=1e-9)]
    assert rows_of_a_request(256, quick, row_bytes) in (rows, rows - 1)


def test_the_first_requests_are_of_the_usual_size_and_later_ones_as_the_server_is_quick() -> None:
    driver = Driver(steps=2, rows=1024, rows_per_request=256, row_bytes=100.0)
    asked = sends(driver.up("a", slots=4))
    assert [sent.piece.rows for sent in asked] == [256] * 4
    later: list[Send] = []
    for sent in asked:
        answered = Answered(sent.server, sent.request, "answer", sent.piece.rows * 100)
        later += sends(driver.tell(answered, after=0.001))
    assert [sent.piece.rows for sent in later] == [1024]


def test_a_server_is_not_asked_for_shards_that_it_does_not_read() -> None:
    driver = Driver(steps=1)
    assert driver.up("a", shards=frozenset({1, 2})) == []
    assert [sent.server for sent in sends(driver.up("b", shards=frozenset({0})))] == ["b"]


def test_the_window_bounds_what_is_asked_and_what_is_not_taken() -> None:
    driver = Driver(steps=9, prefetch_bytes=2.5 * 8 * ROW_BYTES)
    first, second = sends(driver.up("a", slots=9))
    assert [type(action) for action in driver.answer(first)] == [Deliver]
    assert [type(action) for action in driver.answer(second)] == [Deliver]
    assert driver.tell(Tick(), 0.05) == []
    assert [sent.piece.step.number for sent in sends(driver.tell(Taken()))] == [2]


def test_one_step_is_asked_for_even_where_the_window_is_smaller() -> None:
    driver = Driver(prefetch_bytes=1)
    first, *rest = sends(driver.up("a", slots=9))
    assert rest == []
    assert [type(action) for action in driver.answer(first)] == [Deliver]
    assert [sent.piece.step.number for sent in sends(driver.tell(Taken()))] == [1]


def test_requests_are_numbered_on_from_an_earlier_fetcher() -> None:
    fetcher = Fetcher(iter([step(0)]), FetchLimits(1 << 40, 60.0), describe=lambda _: "", now=0.0, first_request=17)
    (sent,) = sends(fetcher.handle(ServerUp("a", 1), 0.0))
    assert (sent.request, fetcher.next_request) == (17, 18)


# ----------------------------------------------------------------------------- servers come and go


def test_what_a_lost_server_was_asked_goes_to_another() -> None:
    driver = Driver(steps=2)
    asked = sends(driver.up("a"))
    driver.up("b")
    again = sends(driver.tell(ServerDown("a", "it died")))
    assert {sent.server for sent in again} == {"b"}
    assert {sent.piece for sent in again} == {sent.piece for sent in asked}


def test_an_answer_of_a_lost_server_that_comes_after_all_is_dropped() -> None:
    driver = Driver(steps=1)
    (asked,) = sends(driver.up("a"))
    driver.up("b")
    (again,) = sends(driver.tell(ServerDown("a", "it died")))
    assert driver.answer(asked) == []
    assert driver.fetcher.counters.stale == 1
    assert [type(action) for action in driver.answer(again)] == [Deliver]
    assert driver.answer(again) == []


def test_a_request_under_way_at_three_deaths_is_not_tried_on_a_fourth_server() -> None:
    driver = Driver(steps=1)
    for name in ("a", "b", "c"):
        assert len(sends(driver.up(name))) == 1
        actions = driver.tell(ServerDown(name, "it died"))
    error = raised(actions)
    assert isinstance(error, SampleError)
    assert "step 0" in str(error)
    assert driver.up("d") == []


def test_a_server_that_says_nothing_is_pinged_and_then_given_up() -> None:
    driver = Driver(steps=1)
    driver.up("a")
    driver.up("b")
    (first, *_) = [a for a in driver.ticks(3.0) if isinstance(a, AskWhetherAlive)]
    assert first.server == "a"
    gone = [action for action in driver.ticks(9.0) if isinstance(action, GiveUp)]
    assert "a" in [action.server for action in gone]
    assert driver.fetcher.counters.evacuated >= 1


def test_a_server_that_answers_pings_is_not_given_up() -> None:
    driver = Driver(steps=1)
    driver.up("a")
    for _ in range(8):
        actions = list(driver.ticks(2.5))
        assert not any(isinstance(action, GiveUp) for action in actions)
        assert AskWhetherAlive("a") in actions
        driver.tell(Heard("a"))


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("reason", ["busy", "indexing", "draining"])
def test_a_server_that_cannot_just_now_is_asked_again_a_little_later(reason: str) -> None:
    driver = Driver(steps=1)
    (asked,) = sends(driver.up("a"))
    assert driver.decline(asked, reason) == []
    assert driver.tell(Tick(), 0.001) == []
    (again,) = sends(driver.tell(Tick(), 0.05))
    assert again.piece is asked.piece
    assert driver.fetcher.counters.busy == 1


def test_a_busy_server_s_request_goes_to_a_free_one_at_once() -> None:
    driver = Driver(steps=1)
    (asked,) = sends(driver.up("a"))
    driver.up("b")
    (again,) = sends(driver.decline(asked, "busy"))
    assert again.server == "b"


@pytest.mark.parametrize(("reason", "error"), [("unreadable_shard", ShardError), ("failed", RefusedError)])
def test_what_no_server_can_do_is_raised_after_three_tries_on_each(reason: str, error: type[Exception]) -> None:
    driver = Driver(steps=1)
    actions = driver.up("a", slots=1)
    driver.up("b", slots=1)
    asked = []
    while not any(isinstance(action, Raise) for action in actions):
        assert driver.now < 10
        asked += [sent.server for sent in sends(actions)]
        actions = [more for sent in sends(actions) for more in driver.decline(sent, reason)] or driver.tell(
            Tick(), 0.05
        )
    assert isinstance(raised(actions), error)
    assert sorted(asked) == ["a", "a", "a", "b", "b", "b"]
    assert 3 < driver.now < 4


def test_a_server_that_comes_up_meanwhile_is_asked_for_what_another_cannot_read() -> None:
    driver = Driver(steps=1)
    (asked,) = sends(driver.up("a"))
    assert driver.decline(asked, "unreadable_shard") == []
    (again,) = sends(driver.up("b"))
    assert again.server == "b"


def test_a_server_started_anew_is_forgiven_what_it_could_not_read() -> None:
    driver = Driver(steps=1)
    (asked,) = sends(driver.up("a"))
    driver.decline(asked, "unreadable_shard")
    driver.tell(ServerDown("a", "it died"))
    assert len(sends(driver.up("a"))) == 1


@pytest.mark.parametrize(("reason", "error"), [("shapes_differ", ShapeError), ("bad_request", BadRequestError)])
def test_what_another_server_would_refuse_as_well_is_raised_at_once(reason: str, error: type[Exception]) -> None:
    driver = Driver(steps=1)
    (asked,) = sends(driver.up("a"))
    driver.up("b")
    assert isinstance(raised(driver.decline(asked, reason)), error)


@pytest.mark.parametrize("reason", ["unknown_stream", "data_differs", "recipe_differs", "version_differs", "new word"])
def test_a_server_that_serves_something_else_by_now_is_given_up(reason: str) -> None:
    driver = Driver(steps=1)
    (asked,) = sends(driver.up("a"))
    driver.up("b")
    given_up, sent = driver.decline(asked, reason)
    assert given_up == GiveUp("a", f"it says {reason}")
    assert isinstance(sent, Send)
    assert sent.server == "b"


# ---------------------------------------------------------------------------- shards on few servers


def test_a_request_that_no_single_server_reads_any_more_is_cut_for_those_there_are() -> None:
    driver = Driver(steps=1, shards=2)
    driver.up("whole", slots=1)
    assert driver.up("a", shards=frozenset({0})) == driver.up("b", shards=frozenset({1})) == []
    halves = sends(driver.tell(ServerDown("whole", "it died")))
    assert {(sent.server, sent.piece.shards) for sent in halves} == {("a", frozenset({0})), ("b", frozenset({1}))}
    driver.answer(halves[0])
    (delivered,) = driver.answer(halves[1])
    assert isinstance(delivered, Deliver)
    assert sorted(row for piece in delivered.pieces for row in piece.select.tolist()) == list(range(8))


def test_with_the_only_holder_of_a_shard_gone_the_error_names_samples_and_servers() -> None:
    driver = Driver(steps=1, shards=2, timeout=30.0)
    (asked,) = sends(driver.up("a", shards=frozenset({0})))
    driver.up("b", shards=frozenset({1}))
    driver.answer(asked)
    driver.tell(ServerDown("b", "it died"))
    error = raised(list(driver.ticks(31.0)))
    assert isinstance(error, StarvedError)
    for words in ("No server that is up reads step 0", "b did before", "b: it died", "a: up"):
        assert words in str(error)


# ---------------------------------------------------------------------------------- late and never


def test_what_the_trainer_waits_for_is_asked_a_second_time_and_the_loser_cancelled() -> None:
    driver = Driver(steps=1)
    (asked,) = sends(driver.up("a"))
    driver.up("b")
    (second,) = sends(list(driver.ticks(1.0)))
    assert second.server == "b"
    assert driver.fetcher.counters.rows_hedged == 8
    cancel, deliver = driver.answer(second)
    assert cancel == Cancel("a", asked.request)
    assert isinstance(deliver, Deliver)


def test_what_the_trainer_does_not_wait_for_is_asked_once() -> None:
    driver = Driver(steps=2)
    first, _ = sends(driver.up("a"))
    driver.answer(first)
    driver.up("b")
    assert sends(list(driver.ticks(2.5))) == []


def test_what_a_stopped_server_has_is_asked_elsewhere_before_it_is_given_up_and_outside_the_budget() -> None:
    driver = Driver(steps=6, extra_work=0.0)
    hung = sends(driver.up("a", slots=4))
    actions = driver.up("b", slots=4)
    while not driver.fetcher.done:
        assert driver.now < 4
        assert not any(isinstance(action, GiveUp) for action in actions)
        actions = [
            more for sent in sends(actions) if sent.server == "b" for more in driver.answer(sent)
        ] or driver.tell(Tick(), 0.05)
    assert len(hung) == 4
    assert driver.fetcher.counters.retried >= 3
    assert driver.fetcher.counters.rows_hedged <= 8


def test_answers_to_later_steps_do_not_count_for_a_trainer_that_waits_for_the_next() -> None:
    driver = Driver(steps=9, timeout=10.0)
    _, *later = sends(driver.up("a", slots=9))
    actions: list[Action] = []
    for sent in later:
        actions += driver.answer(sent, after=2.0)
        actions += driver.tell(Tick())
    assert isinstance(raised(actions), StarvedError)


def test_extra_work_is_bounded() -> None:
    driver = Driver(steps=60, extra_work=0.05, prefetch_bytes=1)
    driver.up("slow", slots=1)
    driver.up("quick", slots=1)
    while not driver.fetcher.done and driver.now < 500:
        driver.tell(Heard("slow"))
        for action in driver.tell(Tick(), 0.05):
            if isinstance(action, Send) and action.server == "quick":
                driver.answer(action)
                driver.tell(Taken())
        for request, asked in list(driver.fetcher._asked.items()):
            if driver.now - asked.since > 4.0:
                driver.tell(Answered(asked.server, request, "answer", 8 * ROW_BYTES))
                driver.tell(Taken())
    counters = driver.fetcher.counters
    assert driver.fetcher.done
    assert 0 < counters.rows_hedged <= 8 + 0.05 * counters.rows_sent


def test_a_trainer_without_any_answer_gets_an_error_that_names_every_server() -> None:
    driver = Driver(timeout=30.0)
    driver.tell(ServerUp("a", 1))
    driver.tell(ServerDown("a", "connection refused"))
    actions = list(driver.ticks(31.0))
    assert [a.seconds for a in actions if isinstance(a, Waiting)] == [5.0]
    error = raised(actions)
    assert isinstance(error, StarvedError)
    assert "a: connection refused" in str(error)
    assert "timeout=30" in str(error)
    assert driver.tell(Tick(), 1.0) == []


def test_waiting_is_said_at_5_30_and_120_seconds() -> None:
    driver = Driver(timeout=200.0)
    assert [a.seconds for a in driver.ticks(150.0) if isinstance(a, Waiting)] == [5.0, 30.0, 120.0]


def test_busy_servers_do_not_count_as_answers() -> None:
    driver = Driver(steps=1, timeout=30.0)
    actions = driver.up("a")
    while not any(isinstance(action, Raise) for action in actions):
        assert driver.now < 31
        actions = [more for sent in sends(actions) for more in driver.decline(sent, "busy")] or driver.tell(
            Tick(), 0.05
        )
    assert isinstance(raised(actions), StarvedError)
    assert driver.now > 29.9


def test_a_trainer_that_has_batches_to_take_is_not_starved() -> None:
    driver = Driver(steps=2, timeout=30.0)
    first, _ = sends(driver.up("a"))
    driver.answer(first)
    assert not any(isinstance(action, Raise) for action in driver.ticks(9.0))
    driver.tell(ServerDown("a", "gone"))
    assert not any(isinstance(action, Raise) for action in driver.ticks(100.0))
    driver.tell(Taken())
    actions = list(driver.ticks(31.0))
    assert isinstance(raised(actions), StarvedError)


def test_a_stopped_process_does_not_count_the_time_it_was_stopped() -> None:
    driver = Driver(steps=1, timeout=30.0)
    (asked,) = sends(driver.up("a"))
    assert driver.tell(Tick(), 3600.0) == []
    assert [type(action) for action in driver.answer(asked)] == [Deliver]


def test_an_abandoned_pass_cancels_what_it_asked() -> None:
    driver = Driver(steps=2)
    asked = sends(driver.up("a"))
    assert driver.fetcher.abandon() == [Cancel("a", sent.request) for sent in asked]
    assert driver.answer(asked[0]) == []


def test_a_piece_says_what_it_is() -> None:
    piece = Piece(step(0), np.array([1, 3]), None)
    assert (piece.rows, piece.answered) == (2, False)
