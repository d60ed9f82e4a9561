"""Bounds on what peers may ask, and on what is kept for all of them together."""

from __future__ import annotations

import numpy as np
import pytest

from shardfeed_server.answer import AnswerMemory
from shardfeed_server.conduct import Conduct, cost_of
from shardfeed_server.fair_queue import FairQueue
from shardfeed_wire.errors import BadRequestError
from shardfeed_wire.messages import Cancel, GetManifest, Ping


def test_a_peer_that_floods_runs_out_of_tokens_and_gets_some_back_with_time() -> None:
    conduct = Conduct()
    spent = 0
    while conduct.spend(b"flood", 1, now=0.0):
        spent += 1
    assert spent == 2_000
    assert conduct.spend(b"other", 1, now=0.0)
    assert conduct.spend(b"flood", 100, now=1.0)
    assert not conduct.spend(b"flood", 1_000, now=1.0)


def test_what_costs_the_front_more_costs_more_tokens() -> None:
    assert cost_of(GetManifest(request=1, stream="s", data="d")) > cost_of(Ping(number=1))
    assert cost_of(Cancel(requests=tuple(range(100_000)))) > 300


def test_a_peer_may_have_so_many_requests_outstanding_and_no_more() -> None:
    conduct = Conduct()
    conduct.workers = 64
    asked = 0
    while conduct.may_ask(b"peer"):
        conduct.asked(b"peer")
        asked += 1
    assert asked == 256  # well above the 2 x workers + 1 that clients are told
    conduct.settled(b"peer")
    assert conduct.may_ask(b"peer")


def test_however_many_jobs_there_are_together_they_hold_a_bounded_amount() -> None:
    queue: FairQueue[int] = FairQueue(unsent_bytes=1_000, items_per_job=10, items=10_000)
    for job in range(100):
        assert queue.push(f"job {job}", job, 400)
    handed = []
    while (popped := queue.pop()) is not None:
        handed.append(popped)
    assert 1_000 <= queue.unsent <= 1_500
    job, _, size = handed[0]
    queue.settle(job, size)
    assert queue.pop() is not None  # somebody's turn, once there is room


def test_an_item_that_is_expected_to_be_larger_than_any_can_be_has_its_turn_beside_others() -> None:
    queue: FairQueue[str] = FairQueue(unsent_bytes=1_000, items_per_job=10, items=100)
    assert queue.push("first", "small", 100)
    assert queue.push("second", "huge", 9_000)
    assert queue.pop() is not None
    assert queue.pop() is not None


def test_an_answer_that_is_too_large_is_refused_before_memory_is_taken() -> None:
    def allocate(size: int) -> memoryview:
        raise AssertionError(f"{size} bytes were taken")

    with pytest.raises(BadRequestError, match=r"the answer to 3 samples would take more than 1,000,000 bytes"):
        AnswerMemory(3, allocate, most=1_000_000).place_dense([(np.dtype("u1"), (3, 1_000, 1_000))], 0)
    with pytest.raises(BadRequestError, match="ask for fewer at once"):
        AnswerMemory(3, allocate, most=1_000_000).check(1_000_001)
