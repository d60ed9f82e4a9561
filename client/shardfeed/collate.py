"""Answers -> one batch of torch tensors: rows of several servers in order, failed ones filled, ragged ones padded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from shardfeed.answers import Answer
from shardfeed_wire.errors import MessageError, SampleError, ShapeError
from shardfeed_wire.messages import Column, Failure

__all__ = ["Part", "assemble"]

_MOST_PADDED = 4 << 30
_INDEX_BYTES = 8

_COPY_BELOW = 65_536
"""A smaller tensor is copied: its message's memory may be shared with others, and is then free at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """An answer and the rows of the step that it brings: ``select``, int64 of shape (rows,)."""

    answer: Answer
    select: NDArray[np.int64]


def assemble(
    parts: Sequence[Part], rows: int, *, on_error: str, pin_memory: bool
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Return the columns of a step by name, in the recipe's order, and which rows are good.

    Dense columns become tensors of shape (rows, *shape), padded ones tensors and, where asked, a
    bool mask column; ragged ones lists of tensors; text, bytes and JSON lists. A single answer that
    is the whole batch is not copied. Rows that failed raise SampleError (``on_error="raise"``) or are
    filled with a good row's values and not good (``"mask"``); a batch without any good row raises in
    either case. Raises ShapeError where rows do not stack, MessageError where JSON is none.
    """
    good = np.ones(rows, dtype=np.bool_)
    failures: list[Failure] = []
    for part in parts:
        for failure in part.answer.batch.failures:
            good[part.select[failure.row]] = False
            failures.append(failure)
    if failures and (on_error == "raise" or not good.any()):
        raise _sample_error(failures[0], len(failures), every=not good.any())
    useful = [part for part in parts if part.answer.columns]
    batch: dict[str, Any] = {}
    for number, (column, _) in enumerate(useful[0].answer.columns):
        pieces = [(part, part.answer.columns[number][1]) for part in useful if _same_column(part, number, column)]
        if len(pieces) != len(useful):
            raise ShapeError(
                f"two servers answered with other columns than {column.name!r}; do they run the same version?"
            )
        if column.kind == "dense":
            batch[column.name] = _dense(column, pieces, rows, good, pin_memory)
        elif column.kind == "ragged":
            _ragged(batch, column, pieces, rows, good)
        else:
            batch[column.name] = _listed(column.kind, pieces, rows, good)
    return batch, good


def _sample_error(failure: Failure, count: int, *, every: bool) -> SampleError:
    place = f"sample {failure.key!r} of shard {failure.shard!r}" + (
        f", field {failure.field!r}" if failure.field else ""
    )
    more = f" ({count} samples of this batch are bad)" if count > 1 else ""
    advice = "mend it, or pass on_error='mask' to go on without such samples"
    if every:
        advice = "every sample of the batch is bad, so not even on_error='mask' can go on; mend the data or the recipe"
    return SampleError(
        f"{place}: {failure.reason}{more}; {advice}"
        + (f"\n\nOn the server:\n{failure.traceback}" if failure.traceback else ""),
        shard=failure.shard,
        key=failure.key,
        field=failure.field,
        reason=failure.reason,
        server_traceback=failure.traceback,
    )


def _same_column(part: Part, number: int, column: Column) -> bool:
    columns = part.answer.columns
    if number >= len(columns):
        return False
    other = columns[number][0]
    same = (other.name, other.kind) == (column.name, column.kind)
    return same and (column.kind != "ragged" or other.dtype == column.dtype)


_Pieces = Sequence[tuple[Part, tuple[NDArray[Any], ...]]]


def _whole(select: NDArray[np.int64], rows: int) -> bool:
    """Whether an answer is the whole batch in order; pieces list their rows in rising order."""
    return len(select) == rows


def _dense(column: Column, pieces: _Pieces, rows: int, good: NDArray[np.bool_], pin_memory: bool) -> torch.Tensor:
    first_part, (first,) = pieces[0]
    for part, (array,) in pieces[1:]:
        if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
            one, two = first_part.answer.batch.first, part.answer.batch.first
            raise ShapeError(
                f"column {column.name!r} has rows of different shapes: "
                f"{one[1]!r} of {one[0]!r} is {first.dtype} {first.shape[1:]}, "
                f"{two[1]!r} of {two[0]!r} is {array.dtype} {array.shape[1:]}; "
                'add a resize to the recipe, or collate = "ragged" to the field'
            )
    if (
        _whole(first_part.select, rows)
        and first.flags.aligned
        and first.flags.writeable
        and first.nbytes >= _COPY_BELOW
    ):
        tensor = torch.from_numpy(first)
        tensor = tensor.pin_memory() if pin_memory else tensor
    else:
        tensor = torch.empty((rows, *first.shape[1:]), dtype=_torch_dtype(first.dtype), pin_memory=pin_memory)
        out = tensor.numpy()
        for part, (array,) in pieces:
            out[part.select] = array
    if not good.all():
        bad = np.flatnonzero(~good)
        filled = tensor.numpy()  # torch cannot fill rows of every dtype
        filled[bad] = filled[int(np.argmax(good))]
    return tensor.view(getattr(torch, column.dtype)) if column.dtype in ("bool", "bfloat16") else tensor


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype.name)
    return found


def _ragged(batch: dict[str, Any], column: Column, pieces: _Pieces, rows: int, good: NDArray[np.bool_]) -> None:
    """Add a ragged column as a list of tensors, or padded to one, with its mask."""
    items: list[NDArray[Any]] = [np.empty(0)] * rows
    for part, (values, offsets, shapes) in pieces:
        bounds = offsets.tolist()
        for row, place in enumerate(part.select.tolist()):
            items[place] = values[bounds[row] : bounds[row + 1]].reshape(shapes[row])
    substitute = items[int(np.argmax(good))]
    items = [item if ok else substitute for item, ok in zip(items, good.tolist(), strict=True)]
    logical = getattr(torch, column.dtype) if column.dtype in ("bool", "bfloat16") else None
    if column.padding is None:
        tensors = [torch.from_numpy(item.copy()) for item in items]
        batch[column.name] = [tensor.view(logical) for tensor in tensors] if logical else tensors
        return
    ranks = {item.ndim for item in items}
    if len(ranks) != 1 or 0 in ranks:
        raise ShapeError(f"column {column.name!r} cannot be padded: its rows have {sorted(ranks)} dimensions")
    shape = np.max([item.shape for item in items], axis=0)
    if column.padding.length is not None:
        shape[0] = column.padding.length
    sizes = shape.tolist()
    mask_bytes = 0 if column.padding.mask is None else (rows + _INDEX_BYTES) * sizes[0]
    _check_padded(column, rows * math.prod(sizes) * items[0].itemsize + mask_bytes)
    value = torch.full((rows, *shape.tolist()), column.padding.value, dtype=logical or _torch_dtype(items[0].dtype))
    out = value.view(_torch_dtype(items[0].dtype)).numpy() if logical else value.numpy()
    lengths = np.zeros(rows, np.int64)
    for row, item in enumerate(items):
        kept = item[: shape[0]]
        out[row][tuple(slice(size) for size in kept.shape)] = kept
        lengths[row] = kept.shape[0]
    batch[column.name] = value
    if column.padding.mask is not None:
        batch[column.padding.mask] = torch.from_numpy(np.arange(shape[0]) < lengths[:, None])


def _check_padded(column: Column, size: int) -> None:
    if size > _MOST_PADDED:
        length = None if column.padding is None else column.padding.length
        to, less = ("its longest row", "set") if length is None else (f"max_len = {length}", "lower")
        raise ShapeError(
            f"column {column.name!r} padded to {to} would take {size:,} bytes, more than {_MOST_PADDED:,}; "
            f'{less} max_len in the recipe, or batch_size, or write collate = "ragged"'
        )


def _from_json(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"a row that should be JSON is none: {error}") from error


_TO_OBJECT: dict[str, Callable[[bytes], Any]] = {
    "text": lambda raw: raw.decode("utf-8", "replace"),
    "bytes": bytes,
    "json": _from_json,
}


def _listed(kind: str, pieces: _Pieces, rows: int, good: NDArray[np.bool_]) -> list[Any]:
    items: list[Any] = [None] * rows
    to_object, fine = _TO_OBJECT[kind], good.tolist()
    for part, (values, offsets) in pieces:
        raw, bounds, places = values.tobytes(), offsets.tolist(), part.select.tolist()
        if kind == "text" and raw.isascii():
            text = raw.decode("ascii")  # whose slices take half the time of decoding each row
            for row, place in enumerate(places):
                items[place] = text[bounds[row] : bounds[row + 1]]
            continue
        for row, place in enumerate(places):
            if fine[place]:
                items[place] = to_object(raw[bounds[row] : bounds[row + 1]])
    substitute = items[int(np.argmax(good))]
    return [item if ok else substitute for item, ok in zip(items, fine, strict=True)]
