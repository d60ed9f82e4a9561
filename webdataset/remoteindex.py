"""Indexing shards from afar: their headers by byte range, and whether a shard is still the one in a manifest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shardfeed_wire.errors import ShardError
from webdataset.keys import base_plus_ext, is_meta
from webdataset.manifest import Manifest
from webdataset.rangesource import RangeSource, Read
from webdataset.remote import Ranges, RemoteIdentity, changed, fault, identify, read_range
from webdataset.tarheader import what_it_is_instead
from webdataset.tarindex import ShardIndex, index_source
from webdataset.tarwalk import Member, walk

__all__ = ["identify_remote_shard", "index_remote_shard", "members_of_sample", "reading", "some_of"]

_LOOKS = 5


def index_remote_shard(ranges: Ranges, url: str, name: str, *, patience: float) -> ShardIndex:
    """Scan a tar's headers by ranges and number its samples. Blocks, ``patience`` seconds a range at most.

    :raises ShardError: as ``index_shard``; or it cannot be read, or changed while it was.
    """
    identity = identify(ranges, url, name, patience=patience)
    read = reading(ranges, url, name, identity, patience)
    try:
        return index_source(RangeSource(read, identity.size), identity.size, identity.modified_ns, identity.etag)
    except ShardError as error:
        if error.shard is not None:
            raise
        raise fault(name, url, f"{error}{_what_to_do(read, identity.size)}") from None


def identify_remote_shard(
    manifest: Manifest, number: int, ranges: Ranges, url: str, *, patience: float
) -> RemoteIdentity:
    """Compare an object with what the manifest says of a shard, and return what identifies the object. Blocks.

    Its size must be the same, and its ETag or modification time; where those differ, as of a copy,
    some samples, first and last among them, must start and end where the manifest has them.

    :raises ShardError: it cannot be read, or has changed since the manifest was made.
    """
    name = manifest.names[number]
    identity = identify(ranges, url, name, patience=patience)
    if identity.size != manifest.sizes[number]:
        raise fault(name, url, str(changed(f"it has {identity.size} bytes, not {manifest.sizes[number]}")))
    etag = manifest.etags[number] if manifest.etags else ""
    if etag == identity.etag if etag and identity.etag else identity.modified_ns == manifest.mtimes[number] != 0:
        return identity
    first, last = np.searchsorted(manifest.block_shard, (number, number + 1)).tolist()
    start = int(manifest.block_first[first])
    stop = int(manifest.block_first[last - 1]) + int(manifest.block_sizes[last - 1])
    read = reading(ranges, url, name, identity, patience)
    for sample in some_of(start, stop):
        at, length = int(manifest.starts[sample]), int(manifest.lengths[sample])
        try:
            found = list(members_of_sample(read, at, at + length))
        except ShardError as error:
            if error.shard is not None:
                raise
            found = []
        if not found:
            raise fault(name, url, str(changed(f"it has no sample at byte {at}")))
    return identity


def reading(ranges: Ranges, url: str, name: str, identity: RemoteIdentity, patience: float) -> Read:
    """Make the function that reads a range of one object."""
    return lambda offset, length: read_range(ranges, url, name, identity, offset, length, patience=patience)


def some_of(start: int, stop: int) -> list[int]:
    """Choose a few numbers of a range: first, last, and some between."""
    return sorted({start + (stop - 1 - start) * look // (_LOOKS - 1) for look in range(_LOOKS)})


def members_of_sample(read: Read, start: int, end: int) -> Iterator[Member]:
    """Walk the headers of the sample that lies from ``start`` to before ``end``; offsets count from ``start``. Blocks.

    :raises ShardError: it is not whole members of one key; no shard is named, unless reading failed.
    """
    source = RangeSource(lambda offset, length: read(start + offset, length), end - start)
    keys = set()
    for member in walk(source, part=True):
        key, _ = base_plus_ext(member[0])
        if key is not None and not is_meta(member[0]):
            keys.add(key)
            yield member
    if len(keys) != 1:
        raise ShardError(f"{len(keys)} samples where one must be")


def _what_to_do(read: Read, size: int) -> str:
    other = what_it_is_instead(bytes(read(0, min(size, 8))))
    if other is None or not other.endswith("compressed"):
        return ""
    return ", which cannot be read at random: `shardfeed index --unpack DIR` writes it out plain"
