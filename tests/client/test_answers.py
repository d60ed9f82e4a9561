"""Answers: what a well-behaved server sends is taken apart, and anything else is a MessageError."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shardfeed.answers import Answer, parse_answer
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
        (batch(failures=(Failure(row=0, shard="s", key="k"),) * ROWS), [HASHES], "no columns"),
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


@pytest.mark.parametrize(
    ("dtype", "sent", "value"),
    [
        ("uint8", "uint8", -1),
        ("int64", "int64", 0.5),
        ("int32", "int32", float("nan")),
        ("float16", "float16", 1e5),
        ("float32", "float32", -1e300),
        ("bfloat16", "uint16", 1e300),
        ("bool", "uint8", 2),
    ],
)
def test_a_value_that_its_dtype_does_not_have_is_no_padding(dtype: str, sent: str, value: float) -> None:
    column = Column(name="ids", kind="ragged", dtype=dtype, tensor=1, padding=Padding(value=value))
    with pytest.raises(MessageError, match=f"no {dtype}"):
        parse(batch(column), [HASHES, np.zeros(3, sent), ENDS, SHAPES])


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


DTYPES = {"bool": "uint8", "bfloat16": "uint16"}  # and what is sent for them; others as they are


@st.composite
def fitting(draw: st.DrawFn) -> tuple[Column, list[np.ndarray]]:
    """A column that parses mostly, and its tensors."""
    kind = draw(st.sampled_from(["dense", "ragged", "ragged", "text", "json"]))
    dtype = draw(st.sampled_from(["uint8", "int64", "uint64", "uint16", "float16", "float32", "bool", "bfloat16"]))
    sent = DTYPES.get(dtype, dtype)
    shape = draw(st.sampled_from([(), (0,), (2,), (2, 3), (0, 1 << 39), (1 << 39, 0), (1, 2, 3)]))
    each = math.prod(shape)
    ends = np.arange(ROWS + 1, dtype=np.int64) * each
    column = Column(
        name=draw(st.sampled_from(["a", "m"])),
        kind=kind,
        dtype=dtype,
        padding=draw(
            st.none()
            | st.builds(
                Padding,
                value=st.sampled_from([0, 1, -1, 0.5, 1e300, math.nan]),
                length=st.none() | st.integers(0, 3) | st.just(1 << 40),
                mask=st.none() | st.just("m"),
            )
        ),
    )
    if kind == "dense":
        return column, [np.ndarray((ROWS, *shape), sent, bytes(ROWS * each * np.dtype(sent).itemsize))]
    if kind == "ragged":
        return column, [np.zeros(ROWS * each, sent), ends, np.array([shape] * ROWS, np.int64).reshape(ROWS, len(shape))]
    return column, [np.frombuffer(b"1" * (ROWS * each), np.uint8), ends]


def answer_of(columns: list[tuple[Column, list[np.ndarray]]], failed: list[int]) -> Answer:
    described, tensors = [], [HASHES]
    for column, parts in columns:
        described.append(msgspec.structs.replace(column, tensor=len(tensors)))
        tensors += parts
    failures = tuple(Failure(row=row, shard="s", key="k") for row in failed)
    return parse(batch(*described, failures=failures), tensors)


answers = st.tuples(st.lists(fitting(), max_size=2), st.lists(st.integers(0, ROWS - 1), max_size=ROWS))


@given(answers, answers, st.sampled_from(["raise", "mask"]))
def test_answers_of_two_servers_make_a_batch_or_raise_what_is_documented(
    one: tuple[list[tuple[Column, list[np.ndarray]]], list[int]],
    two: tuple[list[tuple[Column, list[np.ndarray]]], list[int]],
    on_error: str,
) -> None:
    tracemalloc.start()
    try:
        places = np.arange(2 * ROWS)
        parts = [Part(answer_of(*one), places[::2]), Part(answer_of(*two), places[1::2])]
        made, good = assemble(parts, 2 * ROWS, on_error=on_error, pin_memory=False)
        assert len(good) == 2 * ROWS
        assert all(len(column) == 2 * ROWS for column in made.values())
    except (MessageError, SampleError, ShapeError):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20


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
