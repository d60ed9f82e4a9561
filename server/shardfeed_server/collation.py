"""The rows of one answer on their way into its columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardfeed_server.answer import AnswerMemory, Parts
from shardfeed_server.columns import (
    BytesColumn,
    Cell,
    DenseColumn,
    Filled,
    FilledColumn,
    MismatchError,
    RaggedColumn,
    cell_in_words,
    cell_of,
)
from shardfeed_server.fields import Field
from shardfeed_wire.errors import ShapeError
from shardfeed_wire.messages import Column

__all__ = ["Collation"]


class Collation:
    """Fills the columns of one answer of ``rows`` rows; the first good row decides what columns there are.

    ``title`` says in an error which sample a row is. ``behind`` is a guess of the bytes of a row
    that are not dense; after ``finish`` it is what they came to.
    """

    def __init__(
        self, fields: Sequence[Field], rows: int, memory: AnswerMemory, title: Callable[[int], str], behind: int
    ) -> None:
        self._fields = fields
        self._rows = rows
        self._memory = memory
        self._title = title
        self._first = 0
        self._behind_bytes = 0
        self._cells: list[Cell] = []
        self._columns: list[FilledColumn] = []
        self.behind = behind

    def lend(self, row: int, names: Collection[str]) -> dict[str, NDArray[Any]]:
        """Return the row of each dense column in ``names``, for values to be made in before they are put."""
        if not names:
            return {}
        return {
            field.name: column.lend(row)
            for field, column in zip(self._fields, self._columns, strict=False)
            if field.name in names and isinstance(column, DenseColumn)
        }

    def put(self, row: int, values: Sequence[Any]) -> None:
        """Set a row from the values of its fields.

        Raises SampleError where a value can be no column's, ShapeError, naming both samples, where it does
        not fit its column, and BadRequestError where the answer grows too large. The row is then partly set:
        ``clear`` it.
        """
        cells = [cell_of(value, field) for value, field in zip(values, self._fields, strict=True)]
        self._behind_bytes += sum(_bytes_of(cell) for cell in cells if cell.kind != "dense")
        self._memory.check(self._behind_bytes)
        if not self._columns:
            self._open(row, cells)
        for number, column in enumerate(self._columns):
            try:
                column.put(row, cells[number])
            except MismatchError:
                raise self._shape_error(number, row, cells[number]) from None

    def open(self, cells: Sequence[Cell]) -> None:
        """Make the columns that cells like these ask for, one a field, before `lend_all` and `put_all`."""
        self._open(0, list(cells))

    def lend_all(self, name: str) -> NDArray[Any]:
        """Return all rows of a dense column that is opened, for values to be made in."""
        column = next(column for field, column in zip(self._fields, self._columns, strict=True) if field.name == name)
        assert isinstance(column, DenseColumn)
        return column.lend_all()

    def put_all(self, columns: Sequence[Filled]) -> None:
        """Set every row at once, instead of `put`. Raises BadRequestError where the answer grows too large."""
        self._memory.check(sum(8 * len(rows) + sum(map(len, rows)) for kind, rows in columns if kind != "dense"))
        if not self._columns:
            self.open(
                [
                    Cell(kind, rows.dtype.name, rows[0]) if kind == "dense" else Cell(kind, "uint8", rows[0])
                    for kind, rows in columns
                ]
            )
        for column, (_, rows) in zip(self._columns, columns, strict=True):
            assert isinstance(column, DenseColumn | BytesColumn)
            column.put_all(rows)

    def clear(self, row: int) -> None:
        """Make a row what a failed one is."""
        for column in self._columns:
            column.clear(row)

    def finish(self, before: int) -> tuple[tuple[Column, ...], list[Parts]]:
        """Return the columns in order of fields, and the tensors behind the dense ones.

        ``before`` is the number of tensors before the first column's. No columns where no row is good.
        """
        dense = sum(isinstance(column, DenseColumn) for column in self._columns)
        next_dense, columns, behind = before, [], list[Parts]()
        for column in self._columns:
            if isinstance(column, RaggedColumn | BytesColumn):
                columns.append(column.column(before + dense + len(behind)))
                behind += column.tensors()
            else:
                columns.append(column.column(next_dense))
                next_dense += 1
        self.behind = (
            sum(parts.dtype.itemsize * int(np.prod(parts.shape)) for parts in behind) // max(1, self._rows) + 1
        )
        return tuple(columns), behind

    def _open(self, row: int, cells: list[Cell]) -> None:
        """Make the columns that the first good row asks for."""
        self._first, self._cells = row, cells
        dense = [(cell.data.dtype, (self._rows, *cell.shape)) for cell in cells if cell.kind == "dense"]
        behind = sum(_bytes_of(cell) for cell in cells if cell.kind != "dense")
        guess = max(behind, self.behind) * self._rows * 5 // 4 + 1024 * len(cells)
        arrays = iter(self._memory.place_dense(dense, guess))
        for field, cell in zip(self._fields, cells, strict=True):
            if cell.kind == "dense":
                self._columns.append(DenseColumn(field, cell, next(arrays)))
            elif cell.kind == "ragged":
                self._columns.append(RaggedColumn(field, cell, self._rows))
            else:
                self._columns.append(BytesColumn(field, cell, self._rows))

    def _shape_error(self, number: int, row: int, cell: Cell) -> ShapeError:
        field, first = self._fields[number], self._cells[number]
        return ShapeError(
            f"field {field.name!r} of one batch: {self._title(self._first)} has {cell_in_words(first)}, "
            f"{self._title(row)} has {cell_in_words(cell)}; "
            'make them equal, for pictures with the transform resize=HEIGHTxWIDTH, or give the field collate = "ragged"'
        )


def _bytes_of(cell: Cell) -> int:
    """Return the bytes that a row behind the dense columns takes, with its offset and shape."""
    size = len(cell.data) if isinstance(cell.data, bytes) else int(cell.data.nbytes) + 8 * cell.data.ndim
    return size + 8
