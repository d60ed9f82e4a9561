"""A server's answer, taken apart and checked before anything trusts it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardfeed_wire.errors import MessageError
from shardfeed_wire.messages import Batch, Column, Padding

__all__ = ["Answer", "parse_answer"]

_SENT_AS = {
    name: np.dtype(sent)
    for name, sent in {
        **{f"{kind}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
        **{f"float{bits}": f"float{bits}" for bits in (16, 32, 64)},
        # Those that tenbin lacks, and what travels in their place.
        "bool": "uint8",
        "bfloat16": "uint16",
    }.items()
}
"""Logical dtypes of columns, and as what they travel."""

_MOST_DIMENSIONS, _MOST_ELEMENTS = 32, 1 << 40
"""What a row that arrives empty may still claim of its shape."""

_TENSORS = {"dense": 1, "ragged": 3, "text": 2, "bytes": 2, "json": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A checked answer. The arrays are views of the message.

    ``columns`` pairs each column with its tensors, as `messages.Column` describes them; it is empty
    where every row failed. ``keyhash`` is uint8 of shape (rows, 16). ``keys`` and ``shards`` have one
    entry a row, and are empty where they were not asked for.
    """

    batch: Batch
    keyhash: NDArray[np.uint8]
    columns: tuple[tuple[Column, tuple[NDArray[Any], ...]], ...]
    keys: tuple[str, ...]
    shards: tuple[str, ...]


def parse_answer(batch: Batch, tensors: list[NDArray[Any]], *, rows: int, keys: bool) -> Answer:
    """Check an answer to a request of ``rows`` rows; ``keys``: whether keys were asked for.

    Raises MessageError where tensors are missing, or their shapes, dtypes or offsets do not fit.
    """
    if batch.rows != rows:
        raise MessageError(f"the answer has {batch.rows} rows where {rows} were asked for")
    if any(not 0 <= failure.row < rows for failure in batch.failures):
        raise MessageError("the answer names a failed row that it does not have")
    keyhash = _tensor(tensors, 0, "keyhash")
    if keyhash.dtype != np.uint8 or keyhash.shape != (rows, 16):
        raise MessageError(
            f"the answer's key hashes are {keyhash.dtype} of shape {keyhash.shape}, not uint8 of ({rows}, 16)"
        )
    named: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    if keys:
        number = _tensor(tensors, 1, "shard")
        if number.dtype != np.uint32 or number.shape != (rows,) or (rows and int(number.max()) >= len(batch.shards)):
            raise MessageError("the answer's shard numbers do not fit its shard names")
        shards = tuple(batch.shards[n] for n in number.tolist())
        named = tuple(_texts((_tensor(tensors, 2, "keys"), _tensor(tensors, 3, "keys")), rows, "keys"))
    columns = []
    for column in batch.columns:
        count = _TENSORS[column.kind]
        parts = tuple(_tensor(tensors, column.tensor + n, column.name) for n in range(count))
        if column.kind == "dense":
            _check_dense(column, parts[0], rows)
        elif column.kind == "ragged":
            _check_ragged(column, parts, rows)
        else:
            _check_bytes(parts[0], parts[1], rows, column.name)
        columns.append((column, parts))
    if not columns and len({failure.row for failure in batch.failures}) < rows:
        raise MessageError("the answer has rows but no columns")
    return Answer(batch, keyhash, tuple(columns), named, shards)


def _tensor(tensors: list[NDArray[Any]], number: int, name: str) -> NDArray[Any]:
    if not 0 <= number < len(tensors):
        raise MessageError(f"the answer lacks tensor {number}, of column {name!r}: it has {len(tensors)}")
    return tensors[number]


def _is_sent_as(dtype: np.dtype[Any], logical: str) -> bool:
    sent = _SENT_AS.get(logical)
    return sent is not None and dtype == sent


def _check_dense(column: Column, array: NDArray[Any], rows: int) -> None:
    if array.ndim < 1 or array.shape[0] != rows or not _is_sent_as(array.dtype, column.dtype):
        raise MessageError(
            f"column {column.name!r} is {array.dtype} of shape {array.shape}, not {column.dtype} of {rows} rows"
        )


def _check_offsets(values: NDArray[Any], offsets: NDArray[Any], rows: int, name: str) -> None:
    if values.ndim != 1 or offsets.dtype != np.int64 or offsets.shape != (rows + 1,):
        raise MessageError(
            f"column {name!r}: its offsets are {offsets.dtype} of shape {offsets.shape}, not int64 of ({rows + 1},)"
        )
    if offsets[0] != 0 or int(offsets[-1]) > len(values) or bool((offsets[1:] < offsets[:-1]).any()):
        raise MessageError(f"column {name!r}: its offsets do not rise from 0 to at most {len(values)}")


def _check_ragged(column: Column, parts: tuple[NDArray[Any], ...], rows: int) -> None:
    values, offsets, shapes = parts
    _check_offsets(values, offsets, rows, column.name)
    if not _is_sent_as(values.dtype, column.dtype):
        raise MessageError(f"column {column.name!r} holds {values.dtype}, not {column.dtype}")
    if shapes.dtype != np.int64 or shapes.ndim != 2 or shapes.shape[0] != rows:
        found = f"{shapes.dtype} of shape {shapes.shape}"
        raise MessageError(f"column {column.name!r}: its shapes are {found}, not int64 of ({rows}, ndim)")
    if shapes.shape[1] > _MOST_DIMENSIONS:
        raise MessageError(f"column {column.name!r}: its rows have {shapes.shape[1]} dimensions")
    for row, shape in enumerate(shapes.tolist()):
        fits = min(shape, default=0) >= 0 and math.prod(shape) == int(offsets[row + 1] - offsets[row])
        if not fits or math.prod(size for size in shape if size) > _MOST_ELEMENTS:
            raise MessageError(f"column {column.name!r}: row {row} of shape {tuple(shape)} does not fit its offsets")
    if column.padding is not None:
        _check_padding(column.name, column.padding, column.dtype)


def _check_padding(name: str, padding: Padding, dtype: str) -> None:
    if padding.length is not None and not 0 <= padding.length <= _MOST_ELEMENTS:
        raise MessageError(f"column {name!r}: it cannot be padded to a length of {padding.length}")
    if not padding.fits(dtype):
        raise MessageError(f"column {name!r}: {padding.value} is no {dtype} to pad with")


def _check_bytes(values: NDArray[Any], offsets: NDArray[Any], rows: int, name: str) -> None:
    if values.dtype != np.uint8:
        raise MessageError(f"column {name!r} holds {values.dtype}, not bytes")
    _check_offsets(values, offsets, rows, name)


def _texts(parts: tuple[NDArray[Any], ...], rows: int, name: str) -> list[str]:
    values, offsets = parts
    _check_bytes(values, offsets, rows, name)
    raw, ends = values.tobytes(), offsets.tolist()
    return [raw[ends[row] : ends[row + 1]].decode("utf-8", "replace") for row in range(rows)]
