"""The digest: equal for equal deliveries in whatever order and parts, and different for any other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardfeed.digest import digest_rows
from tests.vectors import reference

WORD = (1 << 64) - 1

rows_of_an_epoch = st.lists(
    st.tuples(st.integers(0, (1 << 63) - 1), st.binary(min_size=16, max_size=16)), min_size=1, max_size=20
)


def digest(epoch: int, rows: list[tuple[int, bytes]]) -> int:
    positions = np.array([position for position, _ in rows], np.int64)
    hashes = np.frombuffer(b"".join(hashed for _, hashed in rows), np.uint8).reshape(-1, 16)
    return digest_rows(epoch, positions, hashes)


@given(st.integers(0, WORD), rows_of_an_epoch)
def test_it_is_what_the_text_of_the_protocol_says(epoch: int, rows: list[tuple[int, bytes]]) -> None:
    assert digest(epoch, rows) == reference.digest(epoch, rows)


@given(st.integers(0, WORD), rows_of_an_epoch, st.data())
def test_it_adds_over_any_parts_in_any_order(epoch: int, rows: list[tuple[int, bytes]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    assert (digest(epoch, shuffled[:cut]) + digest(epoch, shuffled[cut:])) % (1 << 128) == digest(epoch, rows)


def test_no_rows_add_nothing() -> None:
    assert digest(3, []) == 0


def test_sums_of_many_rows_do_not_overflow() -> None:
    rows = [(position, bytes([position % 251]) * 16) for position in range(100_000)]
    halves = (digest(0, rows[:50_000]) + digest(0, rows[50_000:])) % (1 << 128)
    assert digest(0, rows) == halves


def test_another_sample_place_or_epoch_gives_another_digest() -> None:
    hashes = [reference.keyhash(b"a.tar", str(number).encode()) for number in range(200)]
    rows = list(enumerate(hashes))
    swapped = [(0, hashes[1]), (1, hashes[0]), *rows[2:]]
    twice = [(0, hashes[0]), (1, hashes[0]), *rows[2:]]
    assert len({digest(0, rows), digest(0, swapped), digest(0, twice), digest(0, rows[1:]), digest(1, rows)}) == 5
