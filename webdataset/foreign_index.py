"""Tar indexes that other loaders made, taken instead of reading a shard through: DALI's and Energon's.

- DALI's ``wds2idx`` writes text, ``NAME.idx`` beside ``NAME.tar``: a line ``v1.2 SAMPLES``, then a
  line a sample, of ``EXTENSION OFFSET SIZE PATH`` for each of its files; offsets are of the data.
- Energon writes ``NAME.tar.idx``: unsigned 64-bit little-endian numbers, where each sample starts,
  and last where the tar ends.

Neither says whether the shard is still the one that was indexed, so some samples are looked at in
the shard itself: the first, the last, and some between.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from shardfeed_wire.errors import ShardError
from webdataset.keys import base_plus_ext, is_meta
from webdataset.rangesource import Read
from webdataset.remote import AbsentError, Ranges, fault, identify, is_object, read_range
from webdataset.remoteindex import members_of_sample, reading, some_of
from webdataset.tarheader import BLOCK, ZERO_BLOCK, padded
from webdataset.tarindex import ShardIndex, layout_digest

__all__ = ["foreign_index_of_file", "foreign_index_of_object", "index_from_foreign", "index_names"]

_DALI = b"v1."
_DALI_VERSION = "v1.2"
_MOST_BYTES = 1 << 30
_COUNT = re.compile(r"[0-9]{1,18}")

U8: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"


@dataclass(frozen=True, slots=True)
class _Layout:
    """What an index says: where samples start and end, u8[samples], and what it calls a sample's files."""

    starts: U8
    ends: U8
    digest: bytes
    files: Callable[[int], list[tuple[str, int, int]]] | None


def index_names(shard: str) -> tuple[str, str]:
    """Name the files that may be a shard's index, by the shard's path or URL without a query."""
    folder, slash, name = shard.rpartition("/")
    stem = name[: name.find(".", 1)] if name.find(".", 1) > 0 else name
    return f"{folder}{slash}{stem}.idx", f"{shard}.idx"


def index_from_foreign(data: bytes, read: Read, size: int, mtime_ns: int, etag: str = "") -> ShardIndex:
    """Make a shard's index from one made by DALI or Energon, compared with some samples of the shard. Blocks.

    :param data: the index file. :param read: reads the shard, which has ``size`` bytes.
    :raises ShardError: the index is broken, or of another shard; no shard is named, unless reading failed.
    """
    layout = _dali(data, size) if data.startswith(_DALI) else _energon(data, size)
    _check_order(layout, size)
    for sample in some_of(0, len(layout.starts)):
        _check_sample(layout, sample, read)
    _check_end(int(layout.ends[-1]), read, size)
    return ShardIndex(size, mtime_ns, layout.digest, layout.starts, layout.ends - layout.starts, etag)


def _dali(data: bytes, size: int) -> _Layout:
    head, _, body = data.partition(b"\n")
    version, _, count = head.decode("ascii", "replace").strip().partition(" ")
    if version != _DALI_VERSION or not _COUNT.fullmatch(count):
        raise ShardError(f"its index is of DALI's version {version!r}; {_DALI_VERSION} is read: make it with wds2idx")
    lines = body.decode("utf-8", "surrogateescape").splitlines()
    if len(lines) != int(count):
        raise ShardError(f"its index has {len(lines)} of {count} lines")
    samples: list[list[tuple[str, int, int]]] = []
    key: str | None = None
    for number, line in enumerate(lines, start=2):
        for path, offset, length in _dali_files(line, number):
            own, _ = base_plus_ext(path)
            if own is None or is_meta(path):
                continue
            if own != key:
                samples.append([])
                key = own
            samples[-1].append((path, offset, length))
    if not samples:
        raise ShardError("its index has no samples")
    try:
        ends = np.array([files[-1][1] + padded(files[-1][2]) for files in samples], dtype=np.uint64)
    except OverflowError:
        raise ShardError(f"its index does not fit a tar of {size} bytes") from None
    # Headers of any length come before the first file's data; what else lies there is skipped when read.
    starts = np.concatenate([np.zeros(1, np.uint64), ends[:-1]])
    return _Layout(starts, ends, layout_digest(ends, size), samples.__getitem__)


def _dali_files(line: str, number: int) -> list[tuple[str, int, int]]:
    words = line.split(" ")
    if len(words) % 4:
        raise ShardError(f"line {number} of its index is not EXTENSION OFFSET SIZE PATH: are there spaces in paths?")
    try:
        return [(words[at + 3], int(words[at + 1]), int(words[at + 2])) for at in range(0, len(words), 4)]
    except ValueError:
        raise ShardError(f"line {number} of its index holds an offset or a size that is no number") from None


def _energon(data: bytes, size: int) -> _Layout:
    if len(data) % 8 or len(data) < 16:
        raise ShardError(f"its index of {len(data)} bytes is neither DALI's nor Energon's")
    offsets = np.frombuffer(data, "<u8").astype(np.uint64)
    return _Layout(offsets[:-1], offsets[1:], layout_digest(offsets[:-1], size), None)


def _check_order(layout: _Layout, size: int) -> None:
    ends = layout.ends
    rising = bool((layout.starts < ends).all()) and bool((ends[:-1] <= layout.starts[1:]).all())
    whole = not ((layout.starts % BLOCK).any() or (ends % BLOCK).any())
    if not rising or not whole or int(ends[-1]) > size:
        raise ShardError(f"its index does not fit a tar of {size} bytes")


def _check_sample(layout: _Layout, sample: int, read: Read) -> None:
    start, end = int(layout.starts[sample]), int(layout.ends[sample])
    try:
        members = list(members_of_sample(read, start, end))
    except ShardError as error:
        if error.shard is not None:
            raise
        raise ShardError(f"its index has a sample at byte {start}, the shard has none: {error}") from None
    found = [(name, start + at, length) for name, _, at, length, _, _ in members]
    if layout.files is not None and found != layout.files(sample):
        raise ShardError(f"its index has other files at byte {start} than the shard")


def _check_end(end: int, read: Read, size: int) -> None:
    """See that no sample follows the last."""
    if bytes(read(end, min(BLOCK, size - end))) != ZERO_BLOCK:
        raise ShardError(f"its index ends at byte {end}, and the shard does not")


def foreign_index_of_file(path: str, name: str) -> ShardIndex | None:
    """Make a shard's index from the one beside its file; None where there is none. Blocks.

    :raises ShardError: the index is broken or of another shard, or either cannot be read.
    """
    beside = next((each for each in index_names(path) if Path(each).is_file()), None)
    if beside is None:
        return None
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            data = Path(beside).read_bytes()
            return index_from_foreign(
                data,
                lambda offset, length: os.pread(file.fileno(), length, offset),
                status.st_size,
                status.st_mtime_ns,
            )
    except OSError as error:
        raise ShardError(f"shard {name}: cannot read {error.filename}: {error.strerror}", shard=name) from error
    except ShardError as error:
        raise _refused(name, beside, error) from error


def foreign_index_of_object(ranges: Ranges, url: str, name: str, *, patience: float) -> ShardIndex | None:
    """Make a shard's index from the one beside it on its server; None where there is none. Blocks.

    :raises ShardError: the index is broken or of another shard, or either cannot be read.
    """
    path, query, rest = url.partition("?") if not is_object(url) else (url, "", "")
    for beside in (f"{each}{query}{rest}" for each in index_names(path)):
        try:
            of_index = identify(ranges, beside, name, patience=patience, insist=False)
        except AbsentError:
            continue
        if of_index.size > _MOST_BYTES:
            raise fault(name, beside, f"this tar index has {of_index.size} bytes: {_WAY_OUT}")
        data = bytes(read_range(ranges, beside, name, of_index, 0, of_index.size, patience=patience))
        identity = identify(ranges, url, name, patience=patience)
        read = reading(ranges, url, name, identity, patience)
        try:
            return index_from_foreign(data, read, identity.size, identity.modified_ns, identity.etag)
        except ShardError as error:
            if error.shard is not None:
                raise
            raise _refused(name, beside, error) from error
    return None


_WAY_OUT = "make it again, remove it, or pass `--scan` to do without"


def _refused(name: str, beside: str, error: ShardError) -> ShardError:
    return fault(name, beside, f"this tar index cannot be taken: {error}; {_WAY_OUT}")
