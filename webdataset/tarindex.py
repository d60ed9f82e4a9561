"""The samples of one shard, from its headers alone."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardfeed_wire.errors import ShardError
from webdataset.keys import base_plus_ext, is_meta
from webdataset.tarheader import what_it_is_instead
from webdataset.tarsource import FileSource, Source
from webdataset.tarwalk import walk

__all__ = ["DIGEST_BYTES", "ShardIndex", "index_shard", "index_source", "layout_digest", "same_samples"]

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Where the samples of one shard lie.

    ``size`` in bytes and ``mtime_ns`` are the file's, ``digest`` sums up all its headers;
    ``starts`` and ``lengths`` are u8[samples]: bytes from the first header of a sample to the end
    of the padding of its last member. ``etag`` is a far shard's.
    """

    size: int
    mtime_ns: int
    digest: bytes
    starts: np.ndarray[Any, np.dtype[np.uint64]]
    lengths: np.ndarray[Any, np.dtype[np.uint64]]
    etag: str = ""


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
        raise ShardError(f"shard {name}: cannot open {path}: {error.strerror}{_advice(path)}", shard=name) from error
    try:
        return _index_descriptor(fd)
    except ShardError as error:
        raise ShardError(f"shard {name}: {error}{_what_to_do(fd)}", shard=name) from None
    except OSError as error:
        raise ShardError(f"shard {name}: cannot read {path}: {error.strerror}{_advice(path)}", shard=name) from error
    finally:
        os.close(fd)


def _advice(path: str | os.PathLike[str]) -> str:
    """Say what to write, where the path looks like a mistake that is often made."""
    if Path(path).is_dir():
        return f"; name the tars in it, for example {Path(path) / 'train-{000000..000007}.tar'}"
    if any(sign in os.fspath(path) for sign in "*?"):
        return "; only braces expand here, as in train-{000000..000007}.tar: leave * and ? to the shell, without quotes"
    return ""


def index_source(source: Source, size: int, mtime_ns: int, etag: str = "") -> ShardIndex:
    """Scan the headers of a tar, wherever it lies, and number its samples. Blocks while reading.

    :raises ShardError: empty, truncated, not a tar, or without samples; no shard is named.
    """
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    starts: list[int] = []
    ends: list[int] = []
    current: str | None = None
    for name, start, _, _, end, _ in walk(source, hasher=hasher):
        key, _ = base_plus_ext(name)
        if key is None or (name[:2] == "__" and is_meta(name)):
            continue
        if key == current:
            ends[-1] = end
        else:
            starts.append(start)
            ends.append(end)
            current = key
    if not starts:
        raise ShardError("it holds no samples: no file in it has a name like KEY.EXTENSION")
    first = np.array(starts, dtype=np.uint64)
    return ShardIndex(size, mtime_ns, hasher.digest(), first, np.array(ends, dtype=np.uint64) - first, etag)


def layout_digest(offsets: np.ndarray[Any, np.dtype[np.uint64]], size: int) -> bytes:
    """Sum up where samples start, or where they end: what is known of a shard that was not scanned."""
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"shardfeed layout")
    hasher.update(size.to_bytes(8, "little"))
    hasher.update(np.ascontiguousarray(offsets, dtype="<u8").data)
    return hasher.digest()


def same_samples(index: ShardIndex, digest: bytes) -> bool:
    """Say whether a shard that was scanned is the one that a manifest's digest is of, however that was made."""
    return digest in (
        index.digest,
        layout_digest(index.starts, index.size),
        layout_digest(index.starts + index.lengths, index.size),
    )


def _index_descriptor(fd: int) -> ShardIndex:
    before = os.fstat(fd)
    index = index_source(FileSource(fd, before.st_size), before.st_size, before.st_mtime_ns)
    after = os.fstat(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ShardError("it changed while it was read: wait until it is written, then index again")
    return index


def _what_to_do(fd: int) -> str:
    try:
        other = what_it_is_instead(os.pread(fd, 8, 0))
    except OSError:
        return ""
    if other is None or not other.endswith("compressed"):
        return ""
    return ", which cannot be read at random: `shardfeed index --unpack DIR` writes it out plain"
