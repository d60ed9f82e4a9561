"""Columns while they are filled: what kind of column a value belongs in, and the rows of each kind."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from shardfeed_server.answer import Parts
from shardfeed_server.fields import Field
from shardfeed_wire.errors import SampleError
from shardfeed_wire.messages import Column, Kind

__all__ = [
    "BytesColumn",
    "Cell",
    "DenseColumn",
    "Filled",
    "FilledColumn",
    "MismatchError",
    "RaggedColumn",
    "bytes_parts",
    "cell_in_words",
    "cell_of",
    "dense_cell",
]

_CODES: Final = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_NAMES: Final = {np.dtype(code): np.dtype(code).name for code in _CODES}
_SMALL_ROW: Final = 4096
_MOST_DIMENSIONS: Final = 32
_INT64: Final = np.dtype(np.int64)
_FLOAT64: Final = np.dtype(np.float64)


class Filled(NamedTuple):
    """All rows of one column: of a dense one in an array of shape (rows, ...), of text or bytes in a list of bytes."""

    kind: Kind
    rows: Any


class MismatchError(Exception):
    """A value that cannot stand in one column with the one that came first."""


class Cell(NamedTuple):
    """One value, ready for a column of ``kind``: an array whose logical dtype is ``dtype``, or bytes."""

    kind: Kind
    dtype: str
    data: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape; that of text, bytes and JSON is empty."""
        return self.data.shape if self.kind in ("dense", "ragged") else ()


def cell_of(value: Any, field: Field) -> Cell:
    """Say what a value becomes. Raises SampleError where it can be no column's.

    int: int64; float: float64; bool: bool, each a dense scalar, as torch's default_collate has them.
    Arrays and tensors keep their dtype. str: text; bytes: bytes; all else: JSON.
    """
    try:
        return _cell_of(value, field)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        if isinstance(error, SampleError):
            raise
        # A sparse tensor, say, or a picture that Pillow decodes only now.
        reason = f"a value of type {type(value).__name__} is no array ({type(error).__name__}: {error})"
        raise _not_a_column(field, f"{reason}; convert it in a Python transform") from error


def _cell_of(value: Any, field: Field) -> Cell:
    kind: Kind = "dense" if field.collate == "stack" else "ragged"
    if type(value) is int:  # before all others, for labels are the most frequent
        return Cell("dense", "int64", _integer(value, field))
    if type(value) is not np.ndarray:
        if isinstance(value, str):
            return _blob("text", value.encode("utf-8", "replace"), field)
        if isinstance(value, bytes | bytearray | memoryview):
            return _blob("bytes", bytes(value), field)
        if isinstance(value, bool):
            return Cell("dense", "bool", np.array(value, dtype=np.uint8))
        if isinstance(value, int):
            return Cell("dense", "int64", _integer(value, field))
        if isinstance(value, float):
            return Cell("dense", "float64", np.array(value))
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], np.ndarray):
            value = value[0]  # what a .ten file with one array decodes to
        elif _is_tensor(value):
            import torch

            value = value.detach().cpu()
            if value.dtype is torch.bfloat16:
                bits: NDArray[Any] = value.contiguous().view(torch.int16).numpy().view(np.uint16)
                return _array(kind, "bfloat16", bits, field)
            value = value.numpy()
        elif isinstance(value, np.generic | np.ndarray | Pillow.Image):
            value = np.asarray(value)
        else:
            return _blob("json", _json(value, field), field)
    name = _NAMES.get(value.dtype)
    if name is None:
        value, name = _native(value, field)
    return _array(kind, name, value, field)


def dense_cell(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Cell | None:
    """Return what stands for any array of a dtype and shape that is sent as it is; None where it would not be."""
    name = _NAMES.get(dtype) if shape else None
    return None if name is None else Cell("dense", name, np.broadcast_to(np.zeros((), dtype), shape))


class FilledColumn(Protocol):
    """A column of an answer while its rows come in, each at most once, in any order."""

    def put(self, row: int, cell: Cell) -> None:
        """Set a row. Raises MismatchError where the cell does not fit the column."""

    def clear(self, row: int) -> None:
        """Make a row what a failed one is: zeros, or nothing."""

    def column(self, tensor: int) -> Column:
        """Describe the column, whose first tensor has that number."""


class DenseColumn:
    """Rows of one shape in one array, which is part of the answer already."""

    __slots__ = ("_dtype", "_field", "_lent", "_rows", "_shape")

    def __init__(self, field: Field, first: Cell, rows: NDArray[Any]) -> None:
        self._field = field
        self._dtype = first.dtype
        self._shape = first.shape
        self._rows = rows
        self._lent: NDArray[Any] | None = None

    def lend(self, row: int) -> NDArray[Any]:
        """Return a row to be written before it is put; it is put where the same object comes back."""
        self._lent = self._rows[row]
        return self._lent

    def put(self, row: int, cell: Cell) -> None:
        """Copy the value into its row, unless it was made there."""
        data = cell.data
        if cell.kind != "dense" or cell.dtype != self._dtype or data.shape != self._shape:
            raise MismatchError
        if data is not self._lent:
            self._rows[row] = data

    def put_all(self, rows: NDArray[Any]) -> None:
        """Set every row."""
        if rows is not self._rows:
            self._rows[:] = rows

    def lend_all(self) -> NDArray[Any]:
        """Return all rows to be written before they are put; they are put where the same object comes back."""
        return self._rows

    def clear(self, row: int) -> None:
        """Set the row to zeros."""
        self._rows[row] = 0

    def column(self, tensor: int) -> Column:
        """Describe the column."""
        return Column(name=self._field.name, dtype=self._dtype, shape=self._shape, tensor=tensor)


class RaggedColumn:
    """Rows of one dtype and number of dimensions, cut to ``max_len`` where the field says so."""

    __slots__ = ("_dtype", "_empty", "_field", "_rows", "_storage")

    def __init__(self, field: Field, first: Cell, rows: int) -> None:
        self._field = field
        self._dtype = first.dtype
        self._storage = first.data.dtype
        self._empty = np.empty((0,) * first.data.ndim, dtype=self._storage)
        self._rows: list[NDArray[Any]] = [self._empty] * rows

    def put(self, row: int, cell: Cell) -> None:
        """Keep the value; what nobody can write to is copied once, by ``tensors``."""
        if cell.kind != "ragged" or cell.dtype != self._dtype or cell.data.ndim != self._empty.ndim:
            raise MismatchError
        # A Python transform may make every sample in one array of its own: the next one would be in all rows.
        kept = np.array(cell.data, order="C") if cell.data.flags.writeable else np.ascontiguousarray(cell.data)
        self._rows[row] = kept

    def clear(self, row: int) -> None:
        """Set the row to nothing: every dimension 0."""
        self._rows[row] = self._empty

    def column(self, tensor: int) -> Column:
        """Describe the column; its row shape is None for dimensions that vary inside this answer."""
        return Column(
            name=self._field.name,
            kind="ragged",
            dtype=self._dtype,
            shape=_merged([row.shape for row in self._rows]),
            padding=self._field.padding,
            tensor=tensor,
        )

    def tensors(self) -> list[Parts]:
        """Return values, offsets and shapes."""
        sizes = [row.size for row in self._rows]
        shapes = np.array([row.shape for row in self._rows], dtype=np.int64).reshape(len(sizes), self._empty.ndim)
        values = Parts(self._storage, (sum(sizes),), self._rows)
        return [values, Parts.of(_offsets(sizes)), Parts.of(shapes)]


class BytesColumn:
    """Rows of bytes: text in UTF-8, bytes as they are, or JSON."""

    __slots__ = ("_field", "_kind", "_rows")

    def __init__(self, field: Field, first: Cell, rows: int) -> None:
        self._field = field
        self._kind = first.kind
        self._rows = [b""] * rows

    def put(self, row: int, cell: Cell) -> None:
        """Keep the bytes; they are copied once, by ``tensors``."""
        if cell.kind != self._kind:
            raise MismatchError
        self._rows[row] = cell.data

    def put_all(self, rows: list[bytes]) -> None:
        """Keep the bytes of every row, and the list."""
        self._rows = rows

    def clear(self, row: int) -> None:
        """Set the row to no bytes."""
        self._rows[row] = b""

    def column(self, tensor: int) -> Column:
        """Describe the column."""
        return Column(name=self._field.name, kind=self._kind, tensor=tensor)

    def tensors(self) -> list[Parts]:
        """Return values and offsets."""
        return bytes_parts(self._rows)


def bytes_parts(rows: Sequence[bytes]) -> list[Parts]:
    """Return the two tensors of a column of bytes: uint8 values and int64 offsets of shape (rows + 1,)."""
    sizes = [len(row) for row in rows]
    total = sum(sizes)
    # One copy more costs less than many small ones.
    parts = [b"".join(rows)] if total < _SMALL_ROW * len(rows) else rows
    return [Parts(np.dtype(np.uint8), (total,), parts), Parts.of(_offsets(sizes))]


def cell_in_words(cell: Cell) -> str:
    """Say shape and dtype of a cell for an error: ``shape (375, 500, 3) of uint8``, or its kind."""
    return f"shape {cell.shape} of {cell.dtype}" if cell.kind in ("dense", "ragged") else f"kind {cell.kind}"


def _is_tensor(value: object) -> bool:
    """Say whether it is torch's; whoever made one has imported that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _array(kind: Kind, dtype: str, array: NDArray[Any], field: Field) -> Cell:
    if array.ndim == 0:
        return Cell("dense", dtype, array)
    if array.ndim > _MOST_DIMENSIONS:
        raise _not_a_column(field, f"it has {array.ndim} dimensions; arrays of at most {_MOST_DIMENSIONS} can be sent")
    if field.padding is not None and field.padding.length is not None:
        array = array[: field.padding.length]
    return Cell(kind, dtype, array)


def _blob(kind: Kind, data: bytes, field: Field) -> Cell:
    if field.collate != "stack":
        raise _not_a_column(field, f'it is {kind}, but collate = "{field.collate}" is for arrays; leave collate out')
    return Cell(kind, "uint8", data)


def _integer(value: int, field: Field) -> NDArray[np.int64]:
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError as error:
        raise _not_a_column(field, f"the number {value} does not fit 64 bits") from error


def _native(array: NDArray[Any], field: Field) -> tuple[NDArray[Any], str]:
    """Bring an array into a dtype that tenbin has a code for, with the same values."""
    if array.dtype == np.bool_:
        return array.view(np.uint8), "bool"
    swapped = array.dtype.newbyteorder("=")
    if (name := _NAMES.get(swapped)) is None:
        raise _not_a_column(field, f"arrays of dtype {array.dtype} cannot be sent; convert it in a Python transform")
    return array.astype(swapped), name


def _json(value: object, field: Field) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        found = (
            f"a list of {len(value)} arrays"
            if isinstance(value, list) and value and isinstance(value[0], np.ndarray)
            else type(value).__name__
        )
        raise _not_a_column(
            field, f"{found} is neither an array nor JSON ({error}); make it one in a Python transform"
        ) from error


def _not_a_column(field: Field, reason: str) -> SampleError:
    return SampleError(reason, field=field.name, reason=reason)


def _offsets(sizes: Sequence[int]) -> NDArray[np.int64]:
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def _merged(shapes: Sequence[tuple[int, ...]]) -> tuple[int | None, ...]:
    """Return the shape that all have, with None for a dimension that differs."""
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))
