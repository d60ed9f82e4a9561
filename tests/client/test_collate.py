"""Collating: rows of several answers in their places, bad rows filled and flagged, ragged ones padded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shardfeed.answers import parse_answer
from shardfeed.collate import Part, assemble
from shardfeed_wire.errors import SampleError, ShapeError
from shardfeed_wire.messages import Batch, Column, Failure, Padding


def joined(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Write rows as values and offsets."""
    sizes = [row.size for row in rows]
    return [np.concatenate([row.reshape(-1) for row in rows]), np.cumsum([0, *sizes], dtype=np.int64)]


def tensors_of(column: Column, rows: list[Any]) -> list[np.ndarray]:
    if column.kind == "dense":
        return [np.stack(rows)]
    if column.kind == "ragged":
        return [*joined(rows), np.array([row.shape for row in rows], np.int64)]
    return joined([np.frombuffer(row, np.uint8) for row in rows])


def part(select: list[int], *columns: tuple[Column, list[Any]], failed: dict[int, str] | None = None) -> Part:
    """Make an answer that brings the rows ``select``; ``failed`` says which of its own rows failed, and why."""
    tensors, described = [np.zeros((len(select), 16), np.uint8)], []
    for column, rows in columns:
        described.append(Column(**{name: getattr(column, name) for name in COLUMN_FIELDS}, tensor=len(tensors)))
        tensors += tensors_of(column, rows)
    failures = tuple(
        Failure(row=row, shard="a.tar", key=f"bad{row}", field="image", reason=reason, traceback="Traceback: here")
        for row, reason in (failed or {}).items()
    )
    batch = Batch(
        request=1,
        rows=len(select),
        columns=tuple(described),
        first=(f"shard-{select[0]}.tar", f"key{select[0]}"),
        failures=failures,
    )
    return Part(parse_answer(batch, tensors, rows=len(select), keys=False), np.array(select, np.int64))


COLUMN_FIELDS = ("name", "kind", "dtype", "shape", "padding")


def made(*parts: Part, rows: int, on_error: str = "raise") -> tuple[dict[str, Any], list[bool]]:
    columns, good = assemble(list(parts), rows, on_error=on_error, pin_memory=False)
    return columns, good.tolist()


selections = st.integers(1, 9).flatmap(
    lambda rows: st.lists(st.integers(0, 2), min_size=rows, max_size=rows).map(
        lambda owners: [[row for row in range(rows) if owners[row] == owner] for owner in range(3) if owner in owners]
    )
)
"""The rows of a batch, dealt to up to three answers."""


@given(selections, st.sampled_from(["uint8", "int64", "float32", "uint16"]))
def test_dense_rows_of_several_answers_stand_in_their_places(selects: list[list[int]], dtype: str) -> None:
    column = Column(name="x", dtype=dtype, shape=(2,))
    rows = sum(map(len, selects))
    parts = [part(select, (column, [np.full(2, row, dtype) for row in select])) for select in selects]
    columns, good = made(*parts, rows=rows)
    assert columns["x"].dtype == getattr(torch, dtype)
    assert columns["x"].tolist() == [[row, row] for row in range(rows)]
    assert good == [True] * rows


@given(selections)
def test_text_bytes_json_and_ragged_rows_of_several_answers_stand_in_their_places(selects: list[list[int]]) -> None:
    kinds = [
        (Column(name="t", kind="text"), lambda row: f"é{row}".encode() * row),
        (Column(name="b", kind="bytes"), lambda row: bytes([row]) * row),
        (Column(name="j", kind="json"), lambda row: json.dumps({"row": [row, None]}).encode()),
        (Column(name="r", kind="ragged", dtype="float32"), lambda row: np.full((row, 2), row, np.float32)),
    ]
    rows = sum(map(len, selects))
    parts = [part(select, *((column, [make(row) for row in select]) for column, make in kinds)) for select in selects]
    columns, _ = made(*parts, rows=rows)
    assert list(columns) == ["t", "b", "j", "r"]
    assert columns["t"] == [f"é{row}" * row for row in range(rows)]
    assert columns["b"] == [bytes([row]) * row for row in range(rows)]
    assert columns["j"] == [{"row": [row, None]} for row in range(rows)]
    assert [tensor.tolist() for tensor in columns["r"]] == [[[row, row]] * row for row in range(rows)]
    assert all(tensor.shape == (row, 2) for row, tensor in enumerate(columns["r"]))


@pytest.mark.parametrize(
    ("dtype", "sent", "expected"),
    [
        ("bool", np.array([1, 0], np.uint8), torch.tensor([True, False])),
        ("bfloat16", np.array([0x3F80, 0xC000], np.uint16), torch.tensor([1.0, -2.0], dtype=torch.bfloat16)),
    ],
)
def test_logical_dtypes_come_back(dtype: str, sent: np.ndarray, expected: torch.Tensor) -> None:
    dense = Column(name="x", dtype=dtype, shape=())
    ragged = Column(name="r", kind="ragged", dtype=dtype)
    padded = Column(name="p", kind="ragged", dtype=dtype, padding=Padding())
    columns, _ = made(part([0, 1], (dense, list(sent)), (ragged, [sent, sent[:1]]), (padded, [sent, sent[:1]])), rows=2)
    assert torch.equal(columns["x"], expected)
    assert torch.equal(columns["r"][0], expected)
    assert torch.equal(columns["p"], torch.stack([expected, torch.stack([expected[0], torch.zeros_like(expected[0])])]))


def test_a_large_answer_that_is_the_whole_batch_is_not_copied() -> None:
    array = np.zeros((2, 100_000), np.uint8)
    column = Column(name="x", shape=(100_000,), tensor=1)
    batch = Batch(request=1, rows=2, columns=(column,), first=("s", "k"))
    answer = parse_answer(batch, [np.zeros((2, 16), np.uint8), array], rows=2, keys=False)
    columns, _ = made(Part(answer, np.arange(2)), rows=2)
    assert columns["x"].data_ptr() == array.ctypes.data


# -------------------------------------------------------------------------------------------- padding


def test_padded_rows_are_filled_to_the_longest_with_a_mask_where_it_is_named() -> None:
    column = Column(name="ids", kind="ragged", dtype="int64", padding=Padding(value=-1, mask="ids_mask"))
    outer = [np.array([1, 2, 3]), np.array([], np.int64)]
    columns, _ = made(part([1], (column, [np.array([4])])), part([0, 2], (column, outer)), rows=3)
    assert columns["ids"].tolist() == [[1, 2, 3], [4, -1, -1], [-1, -1, -1]]
    assert columns["ids_mask"].tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert columns["ids_mask"].dtype == torch.bool


def test_rows_are_padded_to_a_given_length_and_cut_there() -> None:
    column = Column(name="ids", kind="ragged", dtype="int64", padding=Padding(length=2, mask="m"))
    columns, _ = made(part([0, 1], (column, [np.array([1, 2, 3]), np.array([4])])), rows=2)
    assert columns["ids"].tolist() == [[1, 2], [4, 0]]
    assert columns["m"].tolist() == [[True, True], [True, False]]


def test_every_dimension_is_padded() -> None:
    column = Column(name="m", kind="ragged", dtype="float32", padding=Padding(value=0.5))
    columns, _ = made(part([0, 1], (column, [np.ones((1, 3), np.float32), np.ones((2, 1), np.float32)])), rows=2)
    assert columns["m"].tolist() == [[[1, 1, 1], [0.5, 0.5, 0.5]], [[1, 0.5, 0.5], [1, 0.5, 0.5]]]


def test_rows_of_different_numbers_of_dimensions_cannot_be_padded() -> None:
    column = Column(name="m", kind="ragged", dtype="int64", padding=Padding())
    parts = [part([0], (column, [np.ones((1, 3), np.int64)])), part([1], (column, [np.ones(2, np.int64)]))]
    with pytest.raises(ShapeError, match="'m' cannot be padded"):
        made(*parts, rows=2)


def test_padding_that_would_take_all_memory_is_an_error_before_it_is_taken() -> None:
    column = Column(name="m", kind="ragged", dtype="int64", padding=Padding(length=1 << 39))
    with pytest.raises(ShapeError, match=r"padded to max_len = 549755813888 would take .* lower max_len"):
        made(part([0], (column, [np.ones(1, np.int64)])), rows=1)
    masked = Column(name="m", kind="ragged", dtype="int64", padding=Padding(length=1 << 39, mask="mask"))
    with pytest.raises(ShapeError, match="max_len"):  # the mask alone is that large
        made(part([0], (masked, [np.ones((1, 0), np.int64)])), rows=1)


@pytest.mark.parametrize(("dtype", "sent"), [("bfloat16", np.uint16), ("float16", np.float16), ("int8", np.int8)])
def test_rows_of_every_kind_of_number_are_padded_with_what_is_below_zero(dtype: str, sent: type[np.generic]) -> None:
    column = Column(name="m", kind="ragged", dtype=dtype, padding=Padding(value=-100))
    columns, _ = made(part([0, 1], (column, [np.ones(1, sent), np.ones(2, sent)])), rows=2)
    assert columns["m"].dtype == getattr(torch, dtype)
    assert float(columns["m"][0, 1]) == -100


# ------------------------------------------------------------------------------------------- bad rows


KINDS = [
    (Column(name="x", dtype="int64", shape=()), [np.int64(10), np.int64(0), np.int64(12)]),
    (Column(name="r", kind="ragged", dtype="int64"), [np.array([7]), np.array([], np.int64), np.array([8, 9])]),
    (Column(name="t", kind="text"), [b"one", b"", b"three"]),
    (Column(name="j", kind="json"), [b"[1]", b"", b"[3]"]),
]


def test_a_bad_row_raises_with_shard_key_field_reason_and_the_server_s_traceback() -> None:
    with pytest.raises(SampleError, match=r"sample 'bad1' of shard 'a.tar', field 'image': broken") as caught:
        made(part([0, 1, 2], *KINDS, failed={1: "broken"}), rows=3)
    error = caught.value
    assert (error.shard, error.key, error.field, error.reason) == ("a.tar", "bad1", "image", "broken")
    assert "Traceback: here" in error.server_traceback
    assert "on_error='mask'" in str(error)


def test_masked_rows_repeat_a_good_one_and_are_not_good() -> None:
    columns, good = made(part([0, 1, 2], *KINDS, failed={1: "broken"}), rows=3, on_error="mask")
    assert good == [True, False, True]
    assert columns["x"].tolist() == [10, 10, 12]
    assert [tensor.tolist() for tensor in columns["r"]] == [[7], [7], [8, 9]]
    assert columns["t"] == ["one", "one", "three"]
    assert columns["j"] == [[1], [1], [3]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint16", "uint32", "uint64", "bool", "uint8", "float64"])
@pytest.mark.parametrize("size", [2, 100_000], ids=["copied", "in_place"])
def test_dense_rows_of_every_dtype_are_masked(dtype: str, size: int) -> None:
    sent = {"bfloat16": "uint16", "bool": "uint8"}.get(dtype, dtype)
    column = Column(name="x", dtype=dtype, shape=(size,))
    rows = [np.full(size, value, sent) for value in (0, 1, 0)]
    columns, good = made(part([0, 1, 2], (column, rows), failed={0: "broken"}), rows=3, on_error="mask")
    assert good == [False, True, True]
    assert columns["x"].dtype == getattr(torch, dtype)
    assert torch.equal(columns["x"][0].view(torch.uint8), columns["x"][1].view(torch.uint8))


def test_an_answer_all_of_whose_rows_failed_is_masked_from_another_answer() -> None:
    bad = part([0, 2], failed={0: "broken", 1: "broken"})
    good_part = part([1], *[(column, [rows[2]]) for column, rows in KINDS])
    columns, good = made(bad, good_part, rows=3, on_error="mask")
    assert good == [False, True, False]
    assert columns["x"].tolist() == [12, 12, 12]
    assert columns["t"] == ["three"] * 3


def test_a_batch_without_any_good_row_raises_even_where_bad_rows_are_masked() -> None:
    with pytest.raises(SampleError, match="every sample of the batch is bad"):
        made(part([0, 1], failed={0: "broken", 1: "broken"}), rows=2, on_error="mask")


# --------------------------------------------------------------------------------------------- shapes


def test_rows_of_two_servers_that_do_not_stack_name_two_keys_and_shapes_and_the_way_out() -> None:
    first = (Column(name="image", shape=(2, 3)), [np.zeros((2, 3), np.uint8)])
    second = (Column(name="image", shape=(4, 3)), [np.zeros((4, 3), np.uint8)])
    with pytest.raises(ShapeError) as caught:
        made(part([0], first), part([1], second), rows=2)
    for words in ("'key0'", "'shard-0.tar'", "(2, 3)", "'key1'", "'shard-1.tar'", "(4, 3)", "resize", "ragged"):
        assert words in str(caught.value)


def test_rows_of_two_dtypes_do_not_stack() -> None:
    one = (Column(name="y", dtype="int64", shape=()), [np.int64(1)])
    two = (Column(name="y", dtype="float32", shape=()), [np.float32(1)])
    with pytest.raises(ShapeError, match=r"int64.*float32"):
        made(part([0], one), part([1], two), rows=2)


def test_servers_that_answer_with_different_columns_are_an_error() -> None:
    one = (Column(name="y", kind="text"), [b"a"])
    two = (Column(name="z", kind="text"), [b"a"])
    with pytest.raises(ShapeError, match="other columns than 'y'"):
        made(part([0], one), part([1], two), rows=2)
    flags = (Column(name="y", kind="ragged", dtype="bool"), [np.ones(1, np.uint8)])
    numbers = (Column(name="y", kind="ragged", dtype="float32"), [np.ones((), np.float32)])
    with pytest.raises(ShapeError, match="other columns than 'y'"):
        made(part([0], flags), part([1], numbers), rows=2)
