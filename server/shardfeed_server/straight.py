"""Arrays that are stored as they are sent: read from the shard straight into their row of the answer.

Most samples of a stream have their array in the same place, and of the same form. So where two in a row
had, a third is guessed to: one call reads the array into its row, and what is in front of it and behind it
into memory of its own. That is then taken apart as always, and must say of the array what was guessed;
else the sample is read again, in the usual way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardfeed_server.reading import Located, SampleReader
from webdataset.decode import make_handlers
from webdataset.keys import base_plus_ext
from webdataset.plainsample import plain_places

__all__ = ["LEAST_BYTES", "Place", "StraightReader"]

LEAST_BYTES: Final = 16_384
"""A smaller array is sooner copied than guessed."""

_decode: Callable[[bytes], NDArray[Any]] = make_handlers("rgb8")["npy"]


class Place(NamedTuple):
    """An array in a sample's bytes: its member, what that holds before the array, where it begins, and its form."""

    extension: str
    head: bytes
    start: int
    size: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class StraightReader:
    """Reads samples of which one array need not be copied. ``fields`` are those that it may be, by extension.

    An array of less than ``least`` bytes is not guessed at. ``guess`` is where the next sample is expected to have
    its array, None where nothing is expected.
    """

    def __init__(self, reader: SampleReader, fields: Mapping[str, str], least: int = LEAST_BYTES) -> None:
        self._reader, self._fields, self._least = reader, fields, least
        self._last: Place | None = None
        self.guess: Place | None = None
        self._around = bytearray()

    def read(self, located: Located, rows: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return a sample as `SampleReader.read` does, but one array perhaps as one of ``rows``, in which it then is.

        ``rows`` are rows of the answer by field; any may be written to. Blocks; raises the same.
        """
        guess = self.guess
        if guess is not None:
            row = rows.get(self._fields[guess.extension])
            if row is not None and (row.dtype, row.shape) == (guess.dtype, guess.shape):
                sample = self._guessed(located, guess, row)
                if sample is not None:
                    return sample
        data = self._reader.bytes_of(located)
        found = plain_places(data, base_plus_ext)
        place = None if found is None else self._place(data, found[1])
        self.guess = place if place == self._last else None
        self._last = place
        if found is None:
            return self._reader.sample_of(located, data)
        wanted = self._reader.extensions
        fields = {suffix: data[begin:end] for suffix, (begin, end) in found[1].items() if suffix in wanted}
        return {"__key__": found[0], **fields}

    def _guessed(self, located: Located, guess: Place, row: NDArray[Any]) -> dict[str, Any] | None:
        """Return the sample where the guess is right. The row is dirty where it is not."""
        extension, head, start, size, _, _ = guess
        end, length = start + size, located.length
        if end > length:
            return None
        if len(self._around) != length:
            self._around = bytearray(length)  # what stands for the array in it is never touched
        around = memoryview(self._around)
        if not self._reader.read_into(located, (around[:start], row, around[end:])):
            return None
        found = plain_places(self._around, base_plus_ext)
        if found is None:
            return None
        key, places = found
        if places.get(extension) != (start - len(head), end) or around[start - len(head) : start] != head:
            return None
        sample: dict[str, Any] = {"__key__": key}
        for suffix, (begin, behind) in places.items():
            if suffix == extension:
                sample[suffix] = row
            elif suffix in self._reader.extensions:
                sample[suffix] = bytes(around[begin:behind])
        return sample

    def _place(self, data: bytes, members: Mapping[str, tuple[int, int]]) -> Place | None:
        """Return where a sample has the largest array that may be read so."""
        sizes = {extension: end - begin for extension, (begin, end) in members.items() if extension in self._fields}
        extension = max(sizes, key=sizes.__getitem__, default=None)
        if extension is None or sizes[extension] < self._least:
            return None
        begin, end = members[extension]
        try:
            array = _decode(data[begin:end])
        except Exception:  # the recipe's decoder says why
            return None
        start = end - array.nbytes
        if array.nbytes < self._least or not array.flags.c_contiguous:
            return None
        return Place(extension, data[begin:start], start, array.nbytes, array.dtype, array.shape)
