"""Samples of an array and of numbers, texts, bytes and JSON beside it, all those of an answer at once.

As in `wholesale`, what is done once a sample counts where no picture is decoded. Where samples are alike, each has its
array in the same place: it is read straight into its row of the answer, as `straight` does, and what is around it into
a window, where numpy then looks at the headers of all samples together. Whatever is not alike is left to the way that
goes row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shardfeed_server.collation import Collation
from shardfeed_server.columns import Cell, Filled, dense_cell
from shardfeed_server.decoding import Simple
from shardfeed_server.reading import Located, SampleReader
from shardfeed_server.straight import Place, StraightReader
from shardfeed_server.wholesale import filled, windows
from webdataset.plainmany import plain_members

__all__ = ["Alike"]

_WINDOW: Final = 16 << 20
"""Bytes of samples that are looked at together. What stands for the arrays in it is never touched, so takes none."""

_LONGEST_PAUSE: Final = 1024
"""Answers that are made row by row, at most, before it is tried again after it has failed."""


class Alike:
    """Reads samples whose fields are ``simple`` but for one array; for one thread.

    ``simple`` has, for each of the recipe's fields in order, what is done to it, None for the array; ``straight`` says
    where that is expected.
    """

    def __init__(self, reader: SampleReader, straight: StraightReader, simple: Mapping[str, Simple | None]) -> None:
        self._reader, self._straight, self._names = reader, straight, tuple(simple)
        self._simple = {name: field for name, field in simple.items() if field is not None}
        (self._array,) = simple.keys() - self._simple.keys()
        self._window: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._pause = self._left = 0

    def read(
        self, located: Sequence[Located], collation: Collation, at_row: Callable[[int], None]
    ) -> tuple[list[str], dict[str, list[bytes]]] | None:
        """Read the arrays into their column of a new ``collation``; return the keys, and the bytes of the other fields.

        ``at_row`` is called with a row's number before its sample is touched. Returns None where samples are not
        alike, or not like those before: the collation is then of no use any more. Blocks; raises ShardError.
        """
        place = self._straight.guess
        if place is None or any(sample.length < place.start + place.size for sample in located):
            return None
        if self._left:
            self._left -= 1
            return None
        found = self._read(located, place, collation, at_row)
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause + 1) if found is None else 0
        self._left = self._pause
        return found

    def decode(self, columns: Mapping[str, list[bytes]], collation: Collation) -> list[Filled] | None:
        """Return all columns in order of the fields, that of the array too; None where something does not decode."""
        made = {name: filled(self._simple[name], rows) for name, rows in columns.items()}
        made[self._array] = Filled("dense", collation.lend_all(self._array))
        whole = [each for each in map(made.__getitem__, self._names) if each is not None]
        return whole if len(whole) == len(made) else None

    def _read(
        self, located: Sequence[Located], place: Place, collation: Collation, at_row: Callable[[int], None]
    ) -> tuple[list[str], dict[str, list[bytes]]] | None:
        array = dense_cell(place.dtype, place.shape)
        if array is None:
            return None
        collation.open([array if name == self._array else _cell(self._simple[name]) for name in self._names])
        rows = collation.lend_all(self._array)
        keys: list[str] = []
        columns: dict[str, list[bytes]] = {name: [] for name in self._simple}
        for first, behind in windows(located, _WINDOW):
            bounds = np.zeros(behind - first + 1, dtype=np.int64)
            np.cumsum([sample.length for sample in located[first:behind]], out=bounds[1:])
            window = self._read_around(located, first, bounds, place, rows, at_row)
            found = None if window is None else plain_members(window, bounds)
            if window is None or found is None or not _is_there(place, window, bounds[:-1], found[1]):
                return None
            keys += found[0]
            for name, field in self._simple.items():
                if field.extension not in found[1]:
                    return None
                starts, stops = found[1][field.extension]
                columns[name] += [bytes(window[a:b]) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
        return keys, columns

    def _read_around(
        self,
        located: Sequence[Located],
        first: int,
        bounds: NDArray[np.int64],
        place: Place,
        rows: NDArray[Any],
        at_row: Callable[[int], None],
    ) -> memoryview | None:
        """Read samples from ``first`` on: arrays into ``rows``, what is around them to where ``bounds`` lays it."""
        if bounds[-1] > _WINDOW:
            return None
        if len(self._window) < bounds[-1]:
            self._window = np.empty(bounds[-1], np.uint8)
        window, ends = self._window.data, bounds.tolist()
        read_into, start, end = self._reader.read_into, place.start, place.start + place.size
        for number in range(len(ends) - 1):
            row, at = first + number, ends[number]
            at_row(row)
            around = window[at : at + start], rows[row], window[at + end : ends[number + 1]]
            if not read_into(located[row], around):
                return None
        return window[: ends[-1]]


def _is_there(
    place: Place,
    window: memoryview,
    samples: NDArray[np.int64],
    members: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> bool:
    """Say whether all samples have an array of the same form where it was expected; ``samples`` is where they begin."""
    starts, stops = members.get(place.extension, (None, None))
    if starts is None or stops is None:
        return False
    before = place.start - len(place.head)
    if (starts != samples + before).any() or (stops != samples + place.start + place.size).any():
        return False
    heads = np.frombuffer(window, np.uint8)[starts[:, None] + np.arange(len(place.head))]
    return bool((heads == np.frombuffer(place.head, np.uint8)).all())


def _cell(field: Simple) -> Cell:
    """Return what stands for any value of a field: of a column it says the kind."""
    return Cell("dense", "int64", np.zeros((), np.int64)) if field.kind == "number" else Cell(field.kind, "uint8", b"")
