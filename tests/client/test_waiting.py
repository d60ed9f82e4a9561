"""A wait laid over what happened to the batch: what it overlaps, it is counted for, and nothing is lost."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfeed.recorder import Recorder
from shardfeed.waiting import Spread, Trip, split
from shardfeed_wire.messages import Seconds, Waited

# Asked at 10, in the queue for 2, worked on for 1 + 3, a second for all else, and here at 17.
TRIP = Trip(10.0, 17.0, Seconds(waiting=2.0, reading=1.0, decoding=3.0))


@pytest.mark.parametrize(
    ("waited", "expected"),
    [
        (0.5, Waited(steps=1, wire=0.5)),
        (3.0, Waited(steps=1, wire=1.0, reading=0.5, decoding=1.5)),
        (6.0, Waited(steps=1, wire=1.0, reading=1.0, decoding=3.0, queue=1.0)),
        (9.0, Waited(steps=1, wire=1.0, reading=1.0, decoding=3.0, queue=4.0)),
    ],
)
def test_a_wait_is_counted_for_what_it_overlaps(waited: float, expected: Waited) -> None:
    assert split(waited, 17.0, TRIP) == expected


def test_what_happens_after_the_answer_came_is_not_the_servers() -> None:
    assert split(2.5, 18.0, TRIP) == Waited(steps=1, wire=2.0, reading=0.125, decoding=0.375)


def test_a_server_that_claims_more_than_the_time_it_had_gets_no_more() -> None:
    boasting = Trip(0.0, 1.0, Seconds(waiting=3.0, decoding=9.0))
    assert split(1.0, 1.0, boasting) == Waited(steps=1, queue=0.25, decoding=0.75)


seconds = st.floats(allow_nan=True, allow_infinity=True)


@given(st.floats(0, 1e5), st.floats(0, 1e3), st.floats(0, 1e3), seconds, seconds, seconds, seconds)
def test_the_parts_of_a_wait_add_up_to_it_whatever_a_server_says(
    waited: float, took: float, after: float, queue: float, reading: float, decoding: float, collating: float
) -> None:
    told = Seconds(waiting=queue, reading=reading, decoding=decoding, collating=collating)
    parts = split(waited, 1e4 + took + after, Trip(1e4, 1e4 + took, told))
    found = [parts.queue, parts.reading, parts.decoding, parts.collating, parts.wire]
    assert all(math.isfinite(part) and part >= -1e-9 for part in found)
    assert sum(found) == pytest.approx(waited, abs=1e-6)


@given(st.lists(st.floats(2e-5, 5e3), min_size=1, max_size=300))
def test_quantiles_are_true_to_the_width_of_a_bucket(durations: list[float]) -> None:
    spread = Spread()
    for duration in durations:
        spread.add(duration)
    found, ordered = spread.wait(), sorted(durations)
    assert found.seconds == pytest.approx(sum(durations))
    for part, value in ((0.5, found.p50), (0.99, found.p99)):
        exact = ordered[math.ceil(part * len(ordered)) - 1]
        assert exact / 1.13 <= value <= exact * 1.13


def test_a_batch_that_was_there_counts_as_no_wait() -> None:
    spread = Spread()
    for _ in range(99):
        spread.add(0.0)
    spread.add(1.0)
    assert (spread.wait().p50, spread.wait().p99) == (0.0, 0.0)


def test_what_was_waited_is_told_once() -> None:
    recorder = Recorder()
    recorder.begin()
    for number in range(10_000):
        at = 20.0 * number
        recorder.delivered(samples=1, size=1, masked=0, trip=TRIP, waited=1.0, asked=at, now=at + 1)
    told = recorder.untold()
    assert isinstance(told, Waited)
    assert told.steps == 4_096  # what nobody asked for in time is left out, and takes no memory
    assert not isinstance(recorder.untold(), Waited)
    assert recorder.stats({}).steps == 10_000


def test_the_time_with_the_last_batch_of_a_pass_counts_and_the_time_between_passes_does_not() -> None:
    recorder = Recorder()
    for began in (0.0, 100.0):
        recorder.begin()
        for at in (began, began + 2):
            recorder.delivered(samples=8, size=1, masked=0, trip=TRIP, waited=1.0, asked=at, now=at + 1)
        recorder.ended(began + 4)
    assert recorder.stats({}).seconds == pytest.approx(8)
    assert recorder.stats({}).samples_per_second == pytest.approx(4)
