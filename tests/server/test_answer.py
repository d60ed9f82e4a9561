"""An answer's memory: both framings of it are whole tenbin, whatever had to be moved on the way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardfeed_server.answer import Answer, AnswerMemory, Parts
from shardfeed_wire.tenbin import decode_buffer, decode_list, encode_buffer


class Memory:
    """Dirty memory that grows by mapping the same pages anew, as shared memory does."""

    def __init__(self) -> None:
        self.pages = bytearray(b"\xa5" * (1 << 20))
        self.asked: list[int] = []

    def allocate(self, size: int) -> memoryview:
        self.asked.append(size)
        return memoryview(self.pages)[:size]


def _front(*arrays: np.ndarray) -> Callable[[], list[np.ndarray]]:
    return lambda: list(arrays)


def _read(memory: Memory, answer: Answer) -> list[np.ndarray]:
    view = memoryview(memory.pages)
    single, names = decode_buffer(view[answer.start : answer.end], infos=True)
    multipart = decode_list([view[at : at + size] for at, size in answer.chunks])
    assert names == ["control", *[""] * (len(single) - 1)]
    for one, other in zip(single, multipart, strict=True):
        np.testing.assert_array_equal(one, other)
    # The same bytes that the codec itself makes, padding included.
    assert bytes(view[answer.start : answer.end]) == encode_buffer(single, names)
    return single


SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
DTYPES = st.sampled_from([np.dtype(code) for code in ("u1", "i8", "f4", "f2")])


@given(
    control=st.binary(max_size=200_000),
    dense=st.lists(st.tuples(DTYPES, SHAPES), max_size=3),
    behind=st.lists(st.lists(st.binary(max_size=300), max_size=4), max_size=3),
    guess=st.sampled_from([0, 100, 100_000]),
)
def test_whatever_its_parts_an_answer_is_what_the_codec_would_make(
    control: bytes, dense: list[tuple[np.dtype, tuple[int, ...]]], behind: list[list[bytes]], guess: int
) -> None:
    memory = Memory()
    answer_memory = AnswerMemory(4, memory.allocate)
    arrays = answer_memory.place_dense(dense, guess)
    expected = []
    for number, array in enumerate(arrays):
        array[...] = number + 1
        expected.append(array.copy())
    message = np.frombuffer(control, np.uint8)
    hashes = np.arange(64, dtype=np.uint8).reshape(4, 16)
    parts = [Parts(np.dtype(np.uint8), (sum(map(len, rows)),), rows) for rows in behind]
    answer = answer_memory.finish(_front(message, hashes), parts)
    read = _read(memory, answer)
    np.testing.assert_array_equal(read[0], message)
    np.testing.assert_array_equal(read[1], hashes)
    for one, other in zip(read[2 : 2 + len(dense)], expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    for one, rows in zip(read[2 + len(dense) :], behind, strict=True):
        assert one.tobytes() == b"".join(rows)


def test_memory_is_asked_for_once_where_the_guess_holds() -> None:
    memory = Memory()
    answer_memory = AnswerMemory(2, memory.allocate)
    answer_memory.place_dense([(np.dtype(np.uint8), (2, 3))], 1000)[0][...] = 0
    answer_memory.finish(_front(np.zeros(100, np.uint8)), [Parts.of(np.arange(10))])
    assert len(memory.asked) == 1


def test_an_answer_without_dense_columns_is_whole_too() -> None:
    memory = Memory()
    answer = AnswerMemory(2, memory.allocate).finish(_front(np.zeros(10, np.uint8)), [])
    assert len(_read(memory, answer)) == 1
