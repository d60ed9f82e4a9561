"""SCTP's framing gives back what was sent, in the order in which it was finished, and refuses what makes no sense."""

from __future__ import annotations

import re
import tracemalloc
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfeed_wire.errors import MessageError
from shardfeed_wire.sctp_fragments import ABANDON, FIRST, HEADER, LAST, Cutter, Inbox
from shardfeed_wire.transport import Limits

LIMITS = Limits(frame_bytes=1 << 20, frames=16)
MESSAGES = st.lists(st.lists(st.binary(max_size=300), max_size=8), max_size=12)


def cut(chunks: list[bytes], number: int, size: int = 64) -> list[bytes]:
    cutter, fragments = Cutter(chunks, size), []
    while True:
        fragments.append(b"".join(cutter.fragment(number)))
        if cutter.passed():
            return fragments


def received(inbox: Inbox, stream: int, fragments: list[bytes]) -> list[list[bytes]]:
    return [[*map(bytes, message)] for part in fragments for message in inbox.add(stream, memoryview(part))]


@given(MESSAGES, st.integers(HEADER.size + 1, 500))
def test_messages_come_out_as_they_went_in(messages: list[list[bytes]], size: int) -> None:
    inbox = Inbox(LIMITS, 8)
    for number, message in enumerate(messages):
        fragments = cut(message, number, size)
        assert max(map(len, fragments)) <= size
        assert received(inbox, number % 8, fragments) == [message]
    assert inbox.partial_bytes == 0


@given(MESSAGES, st.data())
def test_streams_that_come_in_any_interleaving_give_the_order_of_the_numbers(
    messages: list[list[bytes]], data: st.DataObject
) -> None:
    queues = [deque[bytes]() for _ in range(8)]
    for number, message in enumerate(messages):
        queues[data.draw(st.integers(0, 7))].extend(cut(message, number))
    inbox, out = Inbox(LIMITS, 8), []
    while waiting := [stream for stream, queue in enumerate(queues) if queue]:
        stream = data.draw(st.sampled_from(waiting))
        out += received(inbox, stream, [queues[stream].popleft()])
    assert out == messages


def test_a_small_message_overtakes_a_large_one_that_is_under_way() -> None:
    inbox, large = Inbox(LIMITS, 8), cut([b"x" * 1000], 1)
    assert received(inbox, 1, large[:3]) == []
    assert received(inbox, 0, cut([b"small"], 0)) == [[b"small"]]
    assert received(inbox, 1, large[3:]) == [[b"x" * 1000]]


def test_a_message_that_is_given_up_never_arrives_and_the_next_does() -> None:
    inbox = Inbox(LIMITS, 8)
    assert received(inbox, 1, cut([b"x" * 1000], 0)[:3]) == []
    assert received(inbox, 1, [HEADER.pack(ABANDON, 0, 0)]) == []
    assert inbox.partial_bytes == 0
    assert received(inbox, 1, cut([b"next"], 0)) == [[b"next"]]


@given(st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=80)), max_size=30))
def test_noise_is_refused_or_waits(noise: list[tuple[int, bytes]]) -> None:
    inbox = Inbox(LIMITS, 8)
    for stream, fragment in noise:
        try:
            received(inbox, stream, [fragment])
        except MessageError:
            return


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 3), st.integers(0, 4), st.binary(max_size=60)),
        max_size=30,
    )
)
def test_fragments_with_any_header_are_refused_or_make_messages_within_the_limits(
    fragments: list[tuple[int, int, int, int, bytes]],
) -> None:
    inbox = Inbox(Limits(frame_bytes=40, frames=3), 3)
    for stream, flags, number, count, body in fragments:
        try:
            messages = received(inbox, stream, [HEADER.pack(flags, number, count) + body])
        except MessageError:
            return
        assert all(len(message) <= 3 and all(len(frame) <= 40 for frame in message) for message in messages)


def test_no_memory_is_taken_for_sizes_that_are_only_named() -> None:
    inbox = Inbox(Limits(frame_bytes=1 << 40, frames=4096), 8)
    sizes = b"".join((1 << 39).to_bytes(8, "little") for _ in range(4096))
    tracemalloc.start()
    try:
        received(inbox, 1, [HEADER.pack(FIRST, 0, 4096) + sizes])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("stream", "fragment", "said"),
    [
        (8, HEADER.pack(FIRST | LAST, 0, 0), "stream 8; 7 is the last"),
        (0, b"short", "5 bytes, which has no header"),
        (0, HEADER.pack(9, 0, 0), "unknown flags 0x9"),
        (0, HEADER.pack(LAST, 0, 0), "went on with none"),
        (0, HEADER.pack(FIRST, 0, 17), "17 frames; 16 are the most"),
        (0, HEADER.pack(FIRST, 0, 1) + (1 << 21).to_bytes(8, "little"), "2097152 bytes; 1048576 are the most"),
        (0, HEADER.pack(FIRST | LAST, 0, 1) + (3).to_bytes(8, "little") + b"ab", "before all of it was sent"),
        (0, HEADER.pack(FIRST | LAST, 0, 1) + b"abc", "before all of it was sent"),
        (0, HEADER.pack(FIRST | LAST, 0, 1) + (1).to_bytes(8, "little") + b"ab", "more bytes than its message has"),
        (0, HEADER.pack(FIRST | LAST, 0, 0) + b"a", "more bytes than its message has"),
        (0, HEADER.pack(FIRST | LAST, 1 << 31, 0), "twice"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(stream: int, fragment: bytes, said: str) -> None:
    with pytest.raises(MessageError, match=said):
        received(Inbox(LIMITS, 8), stream, [fragment])


def test_more_bytes_than_the_bound_without_an_end_are_refused() -> None:
    inbox = Inbox(Limits(frame_bytes=1 << 20, frames=4, message_bytes=2000), 8)
    first, *_ = cut([b"x" * 10_000], 0, 1500)
    received(inbox, 1, [first])
    with pytest.raises(MessageError, match="2000 are the most taken"):
        received(inbox, 2, [first])


def test_a_message_that_never_comes_cannot_make_later_ones_pile_up() -> None:
    inbox = Inbox(LIMITS, 8)
    (later,) = cut([b"x" * (1 << 20)], 1, 2 << 20)
    with pytest.raises(MessageError, match="left out message 0"):
        for number in range(1, 100):
            received(inbox, 0, [HEADER.pack(FIRST | LAST, number, 1) + later[HEADER.size :]])


def test_the_fragment_in_the_protocol_s_page_is_what_is_sent() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    (written,) = re.findall(r"as one fragment:\n\n```text\n(.*?)\n```", page)
    (sent,) = cut([b"ab", b"cde"], 0)
    assert bytes.fromhex(written) == sent
