"""Streams over shards that a test writes, asked without a server around them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from shardfeed_server.config import StreamConfig
from shardfeed_server.stream import Stream
from shardfeed_wire.messages import Batch, Get, StreamInfo, unpack
from tests.photographs import write_shards
from webdataset.indexing import index_shards
from webdataset.shards import ShardReader

__all__ = ["Asked", "Served", "encoded", "serve"]


class Asked:
    """An answer taken apart: the Batch, and each column's value by name."""

    def __init__(self, memory: memoryview, start: int, end: int, chunks: Sequence[tuple[int, int]]) -> None:
        single, self.tensors = unpack([bytes(memory[start:end])])
        multi, tensors = unpack([bytes(memory[at : at + size]) for at, size in chunks])
        assert single == multi
        assert len(tensors) == len(self.tensors)
        for one, other in zip(tensors, self.tensors, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        assert isinstance(single, Batch)
        self.batch = single

    def __getitem__(self, name: str) -> Any:
        column = next(column for column in self.batch.columns if column.name == name)
        first = self.tensors[column.tensor]
        if column.kind == "dense":
            return first
        offsets = self.tensors[column.tensor + 1]
        parts = [first[a:b] for a, b in pairwise(offsets)]
        if column.kind == "ragged":
            shapes = self.tensors[column.tensor + 2]
            return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return [part.tobytes() for part in parts]


class Served:
    """A stream, and the memory its answers are made in, which starts dirty."""

    def __init__(self, stream: Stream, reader: ShardReader) -> None:
        self.stream = stream
        self.reader = reader
        self.touched: list[int] = []
        self.allocated: list[int] = []
        self._memory = memoryview(b"")

    def _allocate(self, size: int) -> memoryview:
        self.allocated.append(size)
        self._memory = memoryview(bytearray(b"\xa5" * size))
        return self._memory

    def ask(
        self,
        numbers: Sequence[int],
        *,
        seed: int = 0,
        epoch: int = 0,
        keys: bool = False,
        bad_rows: Mapping[int, str] | None = None,
    ) -> Asked:
        manifest = self.stream.manifest
        block = np.searchsorted(manifest.block_first, numbers, side="right") - 1
        index = np.asarray(numbers) - manifest.block_first[block]
        try:
            answer = self.stream.answer(
                Get(request=7, stream="s", data="", recipe="", seed=seed, epoch=epoch, keys=keys),
                block.astype(np.uint32),
                index.astype(np.uint16),
                self._allocate,
                at_row=self.touched.append,
                bad_rows=bad_rows or {},
            )
        finally:
            self.reader.close()
        return Asked(self._memory, answer.start, answer.end, answer.chunks)

    def describe(self) -> StreamInfo:
        try:
            return self.stream.describe(at_row=self.touched.append, bad_rows={})
        finally:
            self.reader.close()


def serve(
    folder: Path,
    samples: Sequence[tuple[str, dict[str, bytes]]],
    *,
    shards: int = 1,
    code_dir: Path | None = None,
    **config: Any,
) -> Served:
    """Write samples into shards and serve them as a stream; ``config`` is the StreamConfig's."""
    paths = write_shards(folder / "shards", samples, shards)
    manifest = index_shards(paths)
    reader = ShardReader(manifest)
    stream = StreamConfig(shards=tuple(map(str, paths)), **config)
    made = Stream("s", stream, manifest, reader, code_dir=None if code_dir is None else str(code_dir))
    return Served(made, reader)


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture as a file's bytes."""
    stream = io.BytesIO()
    Pillow.fromarray(picture).save(stream, kind)
    return stream.getvalue()
