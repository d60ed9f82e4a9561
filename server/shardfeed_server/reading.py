"""Samples' bytes, by block and place, with errors that name the shard."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardfeed_wire.errors import BadRequestError, ShardError
from webdataset.manifest import Manifest
from webdataset.samples import read_sample
from webdataset.shards import ShardReader

__all__ = ["Located", "SampleReader"]


class Located(NamedTuple):
    """A sample: the number and name of its shard, its byte range there, and its number in the manifest."""

    shard: int
    shard_name: str
    start: int
    length: int
    number: int


class SampleReader:
    """Reads samples of one manifest, of their members those in ``extensions``."""

    def __init__(self, manifest: Manifest, reader: ShardReader, extensions: AbstractSet[str]) -> None:
        self._manifest = manifest
        self._reader = reader
        self.extensions = extensions

    def locate(self, block: NDArray[Any], index: NDArray[Any]) -> list[Located]:
        """Find samples, and check of each of their shards that it is still the one in the manifest. Blocks briefly.

        They are to be read next, in order: those of far shards begin to come.

        Raises BadRequestError where there are none or one does not exist, ShardError for a shard that changed.
        """
        if block.ndim != 1 or block.shape != index.shape or not block.size:
            raise BadRequestError(f"blocks of shape {block.shape} and samples of shape {index.shape} name no rows")
        try:
            numbers = self._manifest.sample_number(block, index)
            shards, starts, lengths = self._manifest.locate(block, index)
        except IndexError as error:
            raise BadRequestError(str(error)) from error
        for shard in np.unique(shards).tolist():
            self._reader.check(shard)
        self._reader.expect(numbers.tolist())
        of = shards.tolist()
        names = map(self._manifest.names.__getitem__, of)
        return list(map(Located, of, names, starts.tolist(), lengths.tolist(), numbers.tolist()))

    def first(self, count: int) -> list[Located]:
        """Find the first ``count`` samples, or as many as there are, of shards that can be read here; as ``locate``."""
        manifest = self._manifest
        blocks = np.flatnonzero(np.array(self._reader.readable)[manifest.block_shard])[:count]  # none is empty
        sizes = manifest.block_sizes[blocks].astype(np.int64)
        block = np.repeat(blocks, sizes)
        index = np.arange(len(block)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.locate(block[:count], index[:count])

    def read(self, located: Located) -> dict[str, Any]:
        """Return ``__key__`` and the members' bytes by extension. Blocks.

        Raises SampleError for a member that is there twice, ShardError for anything else that is wrong.
        """
        return self.sample_of(located, self.bytes_of(located))

    def there(self, located: Located) -> list[str]:
        """Return the extensions of all members, wanted or not. Blocks; raises as `read` does."""
        return [extension for extension in read_sample(self.bytes_of(located)) if extension != "__key__"]

    def bytes_of(self, located: Located) -> bytes:
        """Return the bytes of all members, headers and all. Blocks; raises ShardError."""
        return self._reader.read(located.shard, located.start, located.length)

    def read_into(self, located: Located, buffers: Sequence[Any]) -> bool:
        """Read the same into buffers, one after the other, as `ShardReader.read_into`. Blocks; raises ShardError."""
        return self._reader.read_into(located.shard, located.start, located.length, buffers)

    def sample_of(self, located: Located, data: bytes) -> dict[str, Any]:
        """Take a sample's bytes apart, as `read` does."""
        try:
            return read_sample(data, suffixes=self.extensions)
        except ShardError as error:
            raise ShardError(f"shard {located.shard_name}: {error}", shard=located.shard_name) from error

    def cached(self) -> tuple[int, int]:
        """Return how many samples of far shards were found in the cache so far, and how many were not."""
        far = self._reader.far
        return (0, 0) if far is None else (far.traffic.hits, far.traffic.misses)

    def readable(self) -> bytes | None:
        """Return one bit a shard, least bit first, for those that can be read here; None where all can."""
        readable = self._reader.readable
        return None if all(readable) else np.packbits(readable, bitorder="little").tobytes()
