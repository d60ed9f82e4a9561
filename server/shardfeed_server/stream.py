"""In a worker: samples named by a request become an answer: read, decode, transform, collate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter as now
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardfeed_server.alike import Alike
from shardfeed_server.answer import Allocate, Answer, AnswerMemory
from shardfeed_server.collation import Collation
from shardfeed_server.columns import Cell, cell_of
from shardfeed_server.config import StreamConfig
from shardfeed_server.decoding import ABSENT
from shardfeed_server.description import describe_columns
from shardfeed_server.draws import Draws
from shardfeed_server.figures import Work
from shardfeed_server.reading import Located, SampleReader
from shardfeed_server.recipe import Recipe
from shardfeed_server.rows import Rows, sample_error
from shardfeed_server.straight import LEAST_BYTES, StraightReader
from shardfeed_server.wholesale import Wholesale
from shardfeed_wire.errors import SampleError
from shardfeed_wire.messages import Batch, Get, Seconds, StreamInfo
from webdataset.manifest import Manifest
from webdataset.shards import ShardReader

__all__ = ["Stream"]

_PROBES: Final = 16
_MOST_PROBED: Final = 256
_MOST_LISTED: Final = 20

_Times: TypeAlias = tuple[float, float, float]
"""Seconds spent reading, decoding and collating."""


class Stream:
    """One stream as a worker serves it: where its samples are, and what is done to them.

    Making one imports the recipe's Python transform, from ``code_dir``. ``work`` is what the last answer
    took, but for CPU seconds. Raises ConfigError for a recipe that makes no sense.
    """

    def __init__(
        self,
        name: str,
        config: StreamConfig,
        manifest: Manifest,
        reader: ShardReader,
        *,
        code_dir: str | None = None,
    ) -> None:
        self.name = name
        self.manifest = manifest
        self.recipe = Recipe(config, code_dir)
        self._reader = SampleReader(manifest, reader, self.recipe.extensions)
        simple = [field for field in self.recipe.simple.values() if field is not None]
        others = [name for name, field in self.recipe.simple.items() if field is None]
        alike = len(others) == 1 and others[0] in self.recipe.as_stored.values()
        self._straight = StraightReader(self._reader, self.recipe.as_stored, 1 if alike else LEAST_BYTES)
        self._alike = Alike(self._reader, self._straight, self.recipe.simple) if alike else None
        self._wholesale = None if others else Wholesale(self._reader, simple)
        self._behind = 0
        self.work = Work()

    def answer(
        self,
        get: Get,
        block: NDArray[np.uint32],
        index: NDArray[np.uint16],
        allocate: Allocate,
        *,
        at_row: Callable[[int], None],
        bad_rows: Mapping[int, str],
        waiting: float = 0.0,
    ) -> Answer:
        """Make the answer to a request for samples ``index`` of blocks ``block``, both of shape (rows,). Blocks.

        ``at_row`` is called with a row's number before its sample is touched. ``bad_rows`` are rows
        that are known to kill or hang a worker, and why: of them only the key is read. ``waiting``
        is seconds for the record. ``allocate`` may be called again where an answer proves larger.
        A bad sample becomes a Failure and its row zero; where all are bad there are no columns.

        Raises BadRequestError for no samples or such as do not exist, ShardError where reading
        fails, and ShapeError where rows cannot stand in one column.
        """
        hits, misses = self._reader.cached()
        located = self._reader.locate(block, index)
        rows = Rows(located)

        def begin() -> tuple[AnswerMemory, Collation]:
            memory = AnswerMemory(len(located), allocate)
            return memory, Collation(self.recipe.fields, len(located), memory, rows.title, self._behind)

        memory, collation = begin()
        times = None if bad_rows else self._at_once(located, rows, collation, at_row)
        if times is None:
            memory, collation = begin()
            times = self._row_by_row(get, located, rows, collation, at_row, bad_rows)
        reading, decoding, collating = times
        began = now()
        for failure in rows.failures:
            collation.clear(failure.row)
        columns, behind = collation.finish(before=4 if get.keys else 1)
        self._behind = collation.behind

        def front() -> list[NDArray[Any]]:
            seconds = Seconds(waiting=waiting, reading=reading, decoding=decoding, collating=collating + now() - began)
            batch = Batch(
                request=get.request,
                rows=len(located),
                columns=columns,
                first=rows.first,
                failures=tuple(rows.failures),
                shards=rows.shards if get.keys else (),
                seconds=seconds,
            )
            hits_now, misses_now = self._reader.cached()
            self.work = Work(
                seconds=seconds, masked=len(rows.failures), hits=hits_now - hits, misses=misses_now - misses
            )
            return rows.tensors(batch, keys=get.keys)

        return memory.finish(front, behind)

    def _at_once(
        self, located: Sequence[Located], rows: Rows, collation: Collation, at_row: Callable[[int], None]
    ) -> _Times | None:
        """Make all rows where that goes without a question, as in `wholesale` or `alike`. Raises as `answer` does."""
        began = now()
        if self._alike is not None:
            alike = self._alike.read(located, collation, at_row)
            read = now()
            filled = None if alike is None else self._alike.decode(alike[1], collation)
            keys = [] if alike is None else alike[0]
        elif self._wholesale is not None:
            found = self._wholesale.read(located, at_row)
            read = now()
            filled = None if found is None else self._wholesale.decode(found[1])
            keys = [] if found is None else found[0]
        else:
            return None
        if filled is None:
            return None
        decoded = now()
        rows.name_all(keys)
        collation.put_all(filled)
        return read - began, decoded - read, now() - decoded

    def _row_by_row(
        self,
        get: Get,
        located: Sequence[Located],
        rows: Rows,
        collation: Collation,
        at_row: Callable[[int], None],
        bad_rows: Mapping[int, str],
    ) -> _Times:
        """Make each row, and note those that cannot be made. Raises as `answer` does."""
        reading = decoding = collating = 0.0
        values_of, in_place = self.recipe.values, self.recipe.in_place
        as_stored = frozenset(self.recipe.as_stored.values())
        read = self._straight.read if as_stored else lambda located, _: self._reader.read(located)
        for row, sample in enumerate(located):
            if row not in bad_rows:
                at_row(row)
            began = now()
            try:
                raw = read(sample, collation.lend(row, as_stored))
                rows.name(row, raw["__key__"])
                was_read = now()
                reading += was_read - began
                if row in bad_rows:
                    raise SampleError(reason=bad_rows[row])
                values = values_of(raw, Draws(get.seed, get.epoch, sample.number), collation.lend(row, in_place))
                decoded = now()
                decoding += decoded - was_read
                collation.put(row, values)
                collating += now() - decoded
            except SampleError as error:
                rows.fail(row, error)
        return reading, decoding, collating

    def describe(self, *, at_row: Callable[[int], None], bad_rows: Mapping[int, str]) -> StreamInfo:
        """Say what the stream is, from its first 16 good samples. Blocks.

        ``at_row`` and ``bad_rows`` are as for `answer`, of samples counted from the first.

        Raises the SampleError of the first sample where none of the first 256 is good, ShapeError
        where a field is of different kinds, and ShardError.
        """
        return StreamInfo(
            name=self.name,
            data=self.manifest.fingerprint,
            recipe=self.recipe.fingerprint,
            samples=self.manifest.samples,
            blocks=len(self.manifest.block_sizes),
            shards=len(self.manifest.names),
            columns=describe_columns(self.recipe.fields, self._probe(at_row, bad_rows)),
            unnamed=self.recipe.unnamed,
            facts=self.recipe.facts,
            readable=self._reader.readable(),
        )

    def _probe(self, at_row: Callable[[int], None], bad_rows: Mapping[int, str]) -> list[list[Cell]]:
        """Return the cells of the first good samples."""
        good: list[list[Cell]] = []
        first_error: tuple[Located, SampleError] | None = None
        for row, sample in enumerate(self._reader.first(_MOST_PROBED)):
            if row not in bad_rows:
                at_row(row)
            key = None
            try:
                raw = self._reader.read(sample)
                key = raw["__key__"]
                if row in bad_rows:
                    raise SampleError(reason=bad_rows[row])
                values = self.recipe.values(raw, Draws(0, 0, sample.number), {})
                good.append([cell_of(value, field) for value, field in zip(values, self.recipe.fields, strict=True)])
            except SampleError as error:
                first_error = first_error or (sample, sample_error(sample, key, error))
            if len(good) == _PROBES:
                break
        if not good and first_error is not None:
            raise self._told_what_is_there(*first_error)
        return good

    def _told_what_is_there(self, sample: Located, error: SampleError) -> SampleError:
        """Return the error; where a field is absent, which a key with a dot brings about, too, with those there are."""
        there = self._reader.there(sample) if error.reason.startswith(ABSENT) else []
        if there:
            listed = " ".join(there[:_MOST_LISTED]) + (" ..." if len(there) > _MOST_LISTED else "")
            error.args = (f"{error}. The sample has: {listed}",)
        return error
