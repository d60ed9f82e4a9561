"""Samples of numbers, texts, bytes and JSON, all those of an answer at once.

Where samples are small, what is done once a sample is all that counts. So where a recipe only asks for numbers,
texts, bytes and JSON as they are stored, samples are read side by side, taken apart together, and turned into columns
one field at a time. Whatever does not go so without a question, one bad sample for example, is left to the way
that goes row by row and can say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from shardfeed_server.columns import Filled
from shardfeed_server.decoding import Simple
from shardfeed_server.reading import Located, SampleReader
from webdataset.decode import decode_text
from webdataset.plainmany import plain_samples

__all__ = ["Wholesale", "filled", "windows"]

_WINDOW: Final = 256 << 10
"""So much is read before it is taken apart: it stays in a core's cache."""

_MOST_EACH: Final = 32 << 10
"""Samples of more bytes than this, on average, are made quicker row by row: copying is then all that counts."""


class Wholesale:
    """Reads and decodes the samples of a recipe's ``simple`` fields; for one thread."""

    def __init__(self, reader: SampleReader, fields: Sequence[Simple]) -> None:
        self._reader, self._fields = reader, fields
        self._suffixes = [field.extension for field in fields]
        self._window = bytearray(_WINDOW)

    def read(
        self, located: Sequence[Located], at_row: Callable[[int], None]
    ) -> tuple[list[str], list[list[bytes]]] | None:
        """Return the samples' keys, and their bytes by field; None where they are large, or not alike.

        ``at_row`` is called with a row's number before its sample is touched. Blocks; raises ShardError.
        """
        if sum(sample.length for sample in located) > _MOST_EACH * len(located):
            return None
        keys: list[str] = []
        columns: list[list[bytes]] = [[] for _ in self._fields]
        for first, behind in windows(located):
            bounds = np.zeros(behind - first + 1, dtype=np.int64)
            np.cumsum([sample.length for sample in located[first:behind]], out=bounds[1:])
            if bounds[-1] > _WINDOW:
                return None
            found = plain_samples(self._bytes_of(located, first, bounds.tolist(), at_row), bounds, self._suffixes)
            if found is None:
                return None
            keys += found[0]
            for column, rows in zip(columns, found[1], strict=True):
                column += rows
        return keys, columns

    def _bytes_of(
        self, located: Sequence[Located], first: int, bounds: Sequence[int], at_row: Callable[[int], None]
    ) -> bytes:
        """Return the bytes of samples from ``first`` on, which ``bounds`` lays side by side."""
        read_into, window = self._reader.read_into, memoryview(self._window)
        for number in range(len(bounds) - 1):
            row = first + number
            at_row(row)
            place = window[bounds[number] : bounds[number + 1]]
            if not read_into(located[row], (place,)):
                place[:] = self._reader.bytes_of(located[row])
        return bytes(window[: bounds[-1]])

    def decode(self, columns: Sequence[list[bytes]]) -> list[Filled] | None:
        """Return what becomes of the bytes; None where something does not decode."""
        made = [filled(field, rows) for field, rows in zip(self._fields, columns, strict=True)]
        whole = [each for each in made if each is not None]
        return whole if len(whole) == len(made) else None


def filled(field: Simple, rows: list[bytes]) -> Filled | None:
    """Return what becomes of a field's bytes; None where something does not decode, or not to what the others do."""
    try:
        if field.kind == "number":
            return Filled("dense", np.array(list(map(int, rows)), dtype=np.int64))
        if field.kind == "json":
            return Filled("json", [_written_anew(row) for row in rows]) if all(map(_is_structure, rows)) else None
        if field.kind == "text" and not b"".join(rows).isascii():
            for row in rows:
                decode_text(row)
    except (ValueError, OverflowError, msgspec.MsgspecError, RecursionError):
        return None
    return Filled(field.kind, rows)


def _is_structure(row: bytes) -> bool:
    """Whether JSON is an object or an array: a number or a text in it makes a column of another kind."""
    return row[:1] in (b"{", b"[")


def _written_anew(row: bytes) -> bytes:
    """Return JSON as it is written row by row, by `columns.cell_of`. Raises for all that Python reads otherwise."""
    return msgspec.json.encode(msgspec.json.decode(row))


def windows(located: Sequence[Located], most: int = _WINDOW) -> Iterator[tuple[int, int]]:
    """Cut samples into runs of ``most`` bytes, each (first, behind); one that has more is a run of its own."""
    first = size = 0
    for row, sample in enumerate(located):
        size += sample.length
        if size > most and row > first:
            yield first, row
            first, size = row, sample.length
    yield first, len(located)
