"""Answers: what a well-behaved server sends is taken apart, and anything else is a MessageError."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shardfeed.answers import parse_answer
from shardfeed.collate import Part, assemble
from shardfeed_wire.errors import MessageError, SampleError, ShapeError
from shardfeed_wire.messages import Batch, Column, Failure, Padding

ROWS = 3
HASHES = np.arange(ROWS * 16, dtype=np.uint8).reshape(ROWS, 16)
ENDS = np.array([0, 1, 2, 3], np.int64)
SHAPES = np.array([[1], [1], [1]], np.int64)


def batch(*columns: Column, rows: int = ROWS, **more: Any) -> Batch:
    return Batch(request=1, rows=rows, columns=columns, first=("a.tar", "k0"), **more)


def ragged(values: Any, offsets: Any, shapes: Any, **column: Any) -> tuple[Batch, list[np.ndarray]]:
    described = Column(name="boxes", kind="ragged", dtype="float32", tensor=1, **column)
    parts = [np.array(values, np.float32), np.array(offsets, np.int64), np.array(shapes, np.int64)]
    return batch(described), [HASHES, *parts]


def parse(message: Batch, tensors: list[np.ndarray], keys: bool = False) -> Any:
    return parse_answer(message, tensors, rows=ROWS, keys=keys)


def test_every_kind_of_column_finds_its_tensors() -> None:
    text = np.frombuffer(b"abc", np.uint8)
    columns = (
        Column(name="image", tensor=1, shape=(2,)),
        Column(name="boxes", kind="ragged", dtype="float32", tensor=2),
        Column(name="caption", kind="text", tensor=5),
        Column(name="raw", kind="bytes", tensor=5),
        Column(name="meta", kind="json", tensor=5),
        Column(name="flag", dtype="bool", shape=(), tensor=7),
        Column(name="half", dtype="bfloat16", shape=(), tensor=8),
    )
    tensors = [
        HASHES,
        np.zeros((ROWS, 2), np.uint8),
        *(np.zeros(3, np.float32), ENDS, SHAPES),
        *(text, ENDS),
        np.ones(ROWS, np.uint8),
        np.ones(ROWS, np.uint16),
    ]
    answer = parse(batch(*columns), tensors)
    assert [column.name for column, _ in answer.columns] == [column.name for column in columns]
    assert [len(parts) for _, parts in answer.columns] == [1, 3, 2, 2, 2, 1, 1]
    assert answer.keyhash is HASHES
    assert answer.keys == answer.shards == ()


def test_keys_and_shards_are_there_where_they_were_asked_for() -> None:
    tensors = [HASHES, np.array([1, 0, 1], np.uint32), np.frombuffer(b"k0k1\xff", np.uint8), np.array([0, 2, 4, 5])]
    message = batch(Column(name="x", tensor=4), shards=("a.tar", "b.tar"))
    answer = parse(message, [*tensors, np.zeros((ROWS, 1), np.uint8)], keys=True)
    assert answer.shards == ("b.tar", "a.tar", "b.tar")
    assert answer.keys == ("k0", "k1", "�")


def test_an_answer_whose_rows_all_failed_has_no_columns() -> None:
    failures = tuple(Failure(row=row, shard="a.tar", key="k", reason="bad") for row in range(ROWS))
    assert parse(batch(failures=failures), [HASHES]).columns == ()


IMAGE = Column(name="image", tensor=1)
TEXT = Column(name="caption", kind="text", tensor=1)
GOOD = np.zeros((ROWS, 2), np.uint8)
HUGE = (1 << 63) - 1


@pytest.mark.parametrize(
    ("message", "tensors", "says"),
    [
        (batch(IMAGE, rows=4), [HASHES, GOOD], "4 rows where 3 were asked for"),
        (batch(IMAGE), [], "lacks tensor 0"),
        (batch(IMAGE), [HASHES[:2], GOOD], "key hashes"),
        (batch(IMAGE), [HASHES.astype(np.uint16), GOOD], "key hashes"),
        (batch(IMAGE), [HASHES], "lacks tensor 1, of column 'image'"),
        (batch(Column(name="image", tensor=-1)), [HASHES, GOOD], "lacks tensor -1"),
        (batch(IMAGE), [HASHES, GOOD[:2]], "image"),
        (batch(IMAGE), [HASHES, np.zeros((), np.uint8)], "image"),
        (batch(IMAGE), [HASHES, GOOD.astype(np.float32)], "float32"),
        (batch(Column(name="image", dtype="bool", tensor=1)), [HASHES, GOOD.astype(np.uint16)], "not bool"),
        (batch(Column(name="image", dtype="object", tensor=1)), [HASHES, GOOD], "not object"),
        (batch(), [HASHES], "no columns"),
        (batch(IMAGE, failures=(Failure(row=3, shard="s", key="k"),)), [HASHES, GOOD], "failed row"),
        (batch(IMAGE, failures=(Failure(row=-1, shard="s", key="k"),)), [HASHES, GOOD], "failed row"),
        (batch(TEXT), [HASHES, np.zeros(3, np.uint8)], "lacks tensor 2"),
        (batch(TEXT), [HASHES, np.zeros(3, np.uint8), ENDS[:3]], "offsets"),
        (batch(TEXT), [HASHES, np.zeros(3, np.uint8), ENDS.astype(np.int32)], "offsets"),
        (batch(TEXT), [HASHES, np.zeros(2, np.uint8), ENDS], "do not rise"),
        (batch(TEXT), [HASHES, np.zeros(3, np.uint8), ENDS + 1], "do not rise"),
        (batch(TEXT), [HASHES, np.zeros(3, np.uint8), ENDS[::-1].copy()], "do not rise"),
        (batch(TEXT), [HASHES, np.zeros(3, np.float64), ENDS], "not bytes"),
        (batch(TEXT), [HASHES, np.zeros((3, 1), np.uint8), ENDS], "offsets"),
        (batch(TEXT), [HASHES, np.zeros(3, np.uint8), np.array([0, HUGE, -HUGE - 1, 3])], "do not rise"),
        (*ragged([1, 2, 3], ENDS, [[1], [1]]), "shapes"),
        (*ragged([1, 2, 3], ENDS, [1, 1, 1]), "shapes"),
        (*ragged([1, 2, 3], ENDS, [[1], [2], [0]]), "row 1 of shape"),
        (*ragged([1, 2, 3], ENDS, [[1, 1], [-1, -1], [1, 1]]), "row 1 of shape"),
        (*ragged([1, 2, 3], [0, 1, 1, 3], [[1, 1, 1], [0, HUGE, HUGE], [2, 1, 1]]), "row 1 of shape"),
        (*ragged([], [0, 0, 0, 0], [[0] * 99] * 3), "99 dimensions"),
        (*ragged([1, 2, 3], ENDS, SHAPES, padding=Padding(length=-1)), "length of -1"),
        (*ragged([1, 2, 3], ENDS, SHAPES, padding=Padding(length=1 << 60)), "length of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_that_does_not_fit_says_what_does_not(message: Batch, tensors: list[np.ndarray], says: str) -> None:
    with pytest.raises(MessageError, match=says):
        parse(message, tensors)


def test_a_value_that_its_dtype_does_not_have_is_no_padding() -> None:
    column = Column(name="ids", kind="ragged", dtype="uint8", tensor=1, padding=Padding(value=-1))
    with pytest.raises(MessageError, match="no uint8"):
        parse(batch(column), [HASHES, np.zeros(3, np.uint8), ENDS, SHAPES])


@pytest.mark.parametrize(
    "keys",
    [
        [np.array([0, 0, 2], np.uint32), np.zeros(3, np.uint8), ENDS],
        [np.array([0, 0, 0], np.int64), np.zeros(3, np.uint8), ENDS],
        [np.array([0, 0], np.uint32), np.zeros(3, np.uint8), ENDS],
        [np.array([0, 0, 0], np.uint32), np.zeros(2, np.uint8), ENDS],
        [np.array([0, 0, 0], np.uint32), np.zeros(3, np.uint8)],
        [],
    ],
    ids=range(6),
)
def test_keys_that_do_not_fit_are_a_message_error(keys: list[np.ndarray]) -> None:
    failures = tuple(Failure(row=row, shard="a", key="k") for row in range(ROWS))
    with pytest.raises(MessageError):
        parse(batch(shards=("a", "b"), failures=failures), [HASHES, *keys], keys=True)


some_column = st.builds(
    Column,
    name=st.sampled_from(["a", "b"]),
    kind=st.sampled_from(["dense", "ragged", "text", "bytes", "json"]),
    dtype=st.sampled_from(["uint8", "float32", "int64", "bool", "bfloat16", "complex128", ""]),
    padding=st.none()
    | st.builds(
        Padding,
        value=st.floats(),
        length=st.none() | st.integers(-2, 1 << 62),
        mask=st.none() | st.just("m"),
    ),
    tensor=st.integers(-1, 5),
)
offsets = st.lists(st.integers(-2, 4) | st.sampled_from([HUGE, -HUGE - 1]), min_size=3, max_size=5).map(
    lambda ends: np.array([0, *ends[1:]], np.int64)
)
some_tensor = (
    hnp.arrays(
        st.sampled_from(["u1", "<u2", "<u4", "<i8", "<f4"]),
        st.sampled_from([(ROWS,), (ROWS, 1), (ROWS + 1,), (ROWS, 2), (0,), (), (6,)]),
        elements={"min_value": 0, "max_value": 4},
    )
    | offsets
)


@given(
    st.lists(some_column, max_size=3),
    st.lists(some_tensor, max_size=5),
    st.lists(st.builds(Failure, row=st.integers(-1, 3), shard=st.just("s"), key=st.just("k")), max_size=3),
    st.booleans(),
    st.sampled_from(["raise", "mask"]),
)
def test_whatever_a_server_answers_only_documented_errors_come_of_it(
    columns: list[Column], tensors: list[np.ndarray], failures: list[Failure], keys: bool, on_error: str
) -> None:
    message = batch(*columns, failures=tuple(failures), shards=("a",))
    try:
        answer = parse(message, [HASHES, *tensors], keys=keys)
    except MessageError:
        return
    try:
        made, good = assemble([Part(answer, np.arange(ROWS))], ROWS, on_error=on_error, pin_memory=False)
    except (MessageError, SampleError, ShapeError):
        return
    assert len(good) == ROWS
    assert all(len(column) == ROWS for column in made.values())


def test_json_that_is_none_is_a_message_error() -> None:
    for raw in (b"{]}", b"\xff\xff\xff", b"[" * 100_000):
        values = np.frombuffer(raw, np.uint8)
        ends = np.array([0, len(raw), len(raw), len(raw)])
        answer = parse(batch(Column(name="meta", kind="json", tensor=1)), [HASHES, values, ends])
        with pytest.raises(MessageError, match="JSON"):
            assemble([Part(answer, np.arange(ROWS))], ROWS, on_error="raise", pin_memory=False)
    assert msgspec.json.decode(b"1") == 1
