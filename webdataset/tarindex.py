"""The samples of one shard, from its headers alone."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardfeed_wire.errors import ShardError
from webdataset.keys import base_plus_ext, is_meta
from webdataset.tarheader import what_it_is_instead
from webdataset.tarsource import FileSource
from webdataset.tarwalk import walk

__all__ = ["DIGEST_BYTES", "ShardIndex", "index_shard"]

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Where the samples of one shard lie.

    ``size`` in bytes and ``mtime_ns`` are the file's, ``digest`` sums up all its headers;
    ``starts`` and ``lengths`` are u8[samples]: bytes from the first header of a sample to the end
    of the padding of its last member.
    """

    size: int
    mtime_ns: int
    digest: bytes
    starts: np.ndarray[Any, np.dtype[np.uint64]]
    lengths: np.ndarray[Any, np.dtype[np.uint64]]


def index_shard(path: str, name: str | None = None) -> ShardIndex:
    """Scan a tar file's headers and number its samples. Blocks while reading.

    :param path: a local file.
    :param name: what to call it in errors; default: the path.
    :raises ShardError: it is missing, empty, truncated, compressed, not a tar, holds no sample, or
        changed while it was read; ``shard`` is the name.
    """
    name = path if name is None else name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ShardError(f"shard {name}: cannot open {path}: {error.strerror}", shard=name) from error
    try:
        return _index_descriptor(fd)
    except ShardError as error:
        raise ShardError(f"shard {name}: {error}{_what_to_do(fd)}", shard=name) from None
    except OSError as error:
        raise ShardError(f"shard {name}: cannot read {path}: {error.strerror}", shard=name) from error
    finally:
        os.close(fd)


def _index_descriptor(fd: int) -> ShardIndex:
    before = os.fstat(fd)
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    starts: list[int] = []
    ends: list[int] = []
    current: str | None = None
    for name, start, _, _, end, _ in walk(FileSource(fd, before.st_size), hasher=hasher):
        key, _ = base_plus_ext(name)
        if key is None or (name[:2] == "__" and is_meta(name)):
            continue
        if key == current:
            ends[-1] = end
        else:
            starts.append(start)
            ends.append(end)
            current = key
    after = os.fstat(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ShardError("it changed while it was read: wait until it is written, then index again")
    if not starts:
        raise ShardError("it holds no samples: no file in it has a name like KEY.EXTENSION")
    first = np.array(starts, dtype=np.uint64)
    return ShardIndex(
        before.st_size, before.st_mtime_ns, hasher.digest(), first, np.array(ends, dtype=np.uint64) - first
    )


def _what_to_do(fd: int) -> str:
    try:
        other = what_it_is_instead(os.pread(fd, 8, 0))
    except OSError:
        return ""
    if other is None or not other.endswith("compressed"):
        return ""
    return ", which cannot be read at random: `shardfeed index --unpack DIR` writes it out plain"
