"""The manifest: every sample of a data set numbered, and each shard cut into blocks.

A manifest is a ``.ten`` file of arrays, mapped into memory when loaded, so that many processes
share one copy of it. ``indexing`` makes manifests from shards; ``shards`` reads samples by them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import msgspec
import numpy as np

from shardfeed_wire.errors import ConfigError, TenbinError
from shardfeed_wire.tenbin import decode_buffer, encode_list, frame_chunk
from webdataset.remote import is_remote, join_url
from webdataset.tarindex import DIGEST_BYTES, ShardIndex
from webdataset.wholefile import WholeFile

__all__ = ["BLOCK_BYTES", "BLOCK_SAMPLES", "Excluded", "Manifest", "cut_blocks", "is_manifest"]

BLOCK_BYTES = 4 << 20
BLOCK_SAMPLES = 4096

_FORMAT = "shardfeed manifest"
_VERSION = 1
_MOST_OFFSET = (1 << 64) - 1
_FIRST_BYTES = 512
"""Among these a manifest says that it is one."""
_ARRAYS = ("manifest", "size", "mtime_ns", "digest", "samples", "blocks", "start", "length")

U2: TypeAlias = "np.ndarray[Any, np.dtype[np.uint16]]"
U8: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"
I8: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


class Excluded(msgspec.Struct, frozen=True):
    """A shard that was left out for good: its name and why."""

    name: str
    reason: str


class _Facts(msgspec.Struct, frozen=True):
    """What the array named ``manifest`` holds, as JSON."""

    format: str
    version: int
    block_bytes: int
    root: str
    names: list[str]
    excluded: list[Excluded]
    fingerprint: str
    etags: list[str] = []


class Manifest:
    """The samples of a data set, by number, by block and by byte range.

    Attributes, all read-only. S shards, N samples, B blocks; samples are numbered in the order of
    the shards and in file order within each.

    - ``names``: S shard names, each the shard's path relative to ``root`` with ``/`` between parts;
      ``excluded``: the shards left out
    - ``root``: the folder or URL that the names are relative to, for the machine that made the manifest
    - ``etags``: the shards' ETags where they lay on a server then; else none
    - ``sizes`` i8[S] in bytes, ``mtimes`` i8[S] in ns, ``digests`` u1[S, 16]: of the shard files
    - ``shard_samples`` i8[S]: samples of each shard
    - ``starts``, ``lengths`` u8[N]: the byte range of each sample in its shard
    - ``block_sizes`` u2[B]: samples of each block; ``block_shard`` i8[B]; ``block_first`` i8[B]: the
      number of its first sample
    - ``samples``, ``block_bytes``; ``fingerprint``: hex, of names, headers and cuts, and not of
      paths and times of files, so that a copy of the data set has the same
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        root: str,
        block_bytes: int,
        sizes: I8,
        mtimes: I8,
        digests: Bytes,
        shard_samples: I8,
        block_sizes: U2,
        starts: U8,
        lengths: U8,
        excluded: Sequence[Excluded] = (),
        etags: Sequence[str] = (),
    ) -> None:
        """Put the parts together and check that their counts agree.

        :raises ValueError: they do not.
        """
        self.names = tuple(names)
        self.root = root
        self.block_bytes = block_bytes
        self.sizes = sizes
        self.mtimes = mtimes
        self.digests = digests
        self.shard_samples = shard_samples
        self.block_sizes = block_sizes
        self.starts = starts
        self.lengths = lengths
        self.excluded = tuple(excluded)
        self.etags = tuple(etags)
        self.samples = len(starts)
        self._file: Path | None = None
        self._check_counts()
        ends = np.cumsum(block_sizes, dtype=np.int64)
        self.block_first: I8 = ends - block_sizes
        shard_ends = np.cumsum(shard_samples, dtype=np.int64)
        self.block_shard: I8 = np.searchsorted(shard_ends, self.block_first, side="right")
        # The last sample of a block must be of the shard that its first is of.
        if not np.array_equal(np.searchsorted(shard_ends, ends - 1, side="right"), self.block_shard):
            raise ValueError("a block reaches over the end of a shard")
        self.fingerprint = self._fingerprint()

    @classmethod
    def from_indexes(
        cls,
        names: Sequence[str],
        indexes: Sequence[ShardIndex],
        *,
        root: str,
        block_bytes: int = BLOCK_BYTES,
        excluded: Sequence[Excluded] = (),
    ) -> Manifest:
        """Number the samples of scanned shards and cut them into blocks of about ``block_bytes`` bytes."""
        return cls(
            names,
            root=root,
            block_bytes=block_bytes,
            sizes=np.array([index.size for index in indexes], dtype=np.int64),
            mtimes=np.array([index.mtime_ns for index in indexes], dtype=np.int64),
            digests=np.frombuffer(b"".join(index.digest for index in indexes), np.uint8).reshape(-1, DIGEST_BYTES),
            shard_samples=np.array([len(index.starts) for index in indexes], dtype=np.int64),
            block_sizes=np.concatenate([cut_blocks(index.lengths, block_bytes) for index in indexes]),
            starts=np.concatenate([index.starts for index in indexes]),
            lengths=np.concatenate([index.lengths for index in indexes]),
            excluded=excluded,
            etags=[index.etag for index in indexes] if any(index.etag for index in indexes) else (),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Map a manifest file into memory. Blocks briefly; samples are read as they are looked up.

        :raises ConfigError: there is no such file, or it is not a whole manifest of this version.
        """
        path = Path(path)
        try:
            with path.open("rb") as stream:
                mapped = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            manifest = cls._from_buffer(mapped)
            manifest._file = path.absolute()
            return manifest
        except OSError as error:
            reason = f"cannot be read: {error.strerror}; make it with `shardfeed index`"
            raise ConfigError(f"manifest {path}: {reason}") from error
        except (TenbinError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ConfigError(f"manifest {path}: {error}; make it again with `shardfeed index`") from error

    @classmethod
    def _from_buffer(cls, buffer: memoryview) -> Manifest:
        arrays, infos = decode_buffer(buffer, infos=True)
        if tuple(infos) != _ARRAYS:
            raise ValueError(f"it holds the arrays {infos}, so it is not a manifest")
        raw, sizes, mtimes, digests, shard_samples, block_sizes, starts, lengths = arrays
        facts = msgspec.json.decode(raw.tobytes(), type=_Facts)
        if facts.format != _FORMAT or facts.version != _VERSION:
            raise ValueError(f"it is {facts.format!r} version {facts.version}, not a manifest of version {_VERSION}")
        expected = {"sizes": "<i8", "mtimes": "<i8", "shard_samples": "<i8", "starts": "<u8", "lengths": "<u8"}
        parts = {"sizes": sizes, "mtimes": mtimes, "shard_samples": shard_samples, "starts": starts, "lengths": lengths}
        wrong = [name for name, dtype in expected.items() if parts[name].dtype != dtype or parts[name].ndim != 1]
        if wrong or digests.dtype != np.uint8 or block_sizes.dtype != "<u2" or block_sizes.ndim != 1:
            raise ValueError(f"its arrays have wrong dtypes or shapes: {wrong or 'digest or blocks'}")
        manifest = cls(
            facts.names,
            root=facts.root,
            block_bytes=facts.block_bytes,
            digests=digests,
            block_sizes=block_sizes,
            excluded=facts.excluded,
            etags=facts.etags,
            **parts,
        )
        if manifest.fingerprint != facts.fingerprint:
            raise ValueError("its contents do not have the fingerprint it was written with")
        return manifest

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest as a ``.ten`` file, whole or not at all. Blocks while writing.

        :raises OSError: it cannot be written.
        """
        facts = _Facts(
            _FORMAT,
            _VERSION,
            self.block_bytes,
            self.root,
            list(self.names),
            list(self.excluded),
            self.fingerprint,
            list(self.etags),
        )
        arrays = [
            np.frombuffer(msgspec.json.encode(facts), dtype=np.uint8),
            self.sizes,
            self.mtimes,
            self.digests,
            self.shard_samples,
            self.block_sizes,
            self.starts,
            self.lengths,
        ]
        # Readers map the file, so it may never change under them: a new one takes its name.
        with WholeFile(path) as file:
            for chunk in encode_list(arrays, _ARRAYS):
                file.stream.writelines(frame_chunk(chunk))

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle a manifest that is mapped from a file as that file's name: whoever unpickles it maps it too."""
        return super().__reduce__() if self._file is None else (_load_same, (self._file, self.fingerprint))

    def sample_number(self, block: np.ndarray[Any, Any], index: np.ndarray[Any, Any]) -> I8:
        """Number samples given by block and place in it, both integer arrays of one shape.

        :raises IndexError: there is no such block, or no such place in it.
        """
        block = np.asarray(block, dtype=np.int64)
        index = np.asarray(index, dtype=np.int64)
        if block.size:
            if int(block.min()) < 0 or int(block.max()) >= len(self.block_sizes):
                raise IndexError(f"there are {len(self.block_sizes)} blocks; one of those asked for does not exist")
            if int(index.min()) < 0 or bool((index >= self.block_sizes[block]).any()):
                raise IndexError("one of the samples asked for is not in its block")
        numbers: I8 = self.block_first[block] + index
        return numbers

    def locate(self, block: np.ndarray[Any, Any], index: np.ndarray[Any, Any]) -> tuple[I8, U8, U8]:
        """Find samples given by block and place in it, both integer arrays of one shape.

        :returns: shard numbers i8, start offsets u8, lengths u8 in bytes, of the same shape.
        :raises IndexError: there is no such block, or no such place in it.
        """
        numbers = self.sample_number(block, index)
        return self.block_shard[np.asarray(block, dtype=np.int64)], self.starts[numbers], self.lengths[numbers]

    def path(self, shard: int, root: str | os.PathLike[str] | None = None) -> str:
        """Give the path or URL of a shard by its number, under ``root`` or where it was when indexed."""
        root = self.root if root is None else os.fspath(root)
        return join_url(root, self.names[shard]) if is_remote(root) else str(Path(root) / self.names[shard])

    def _check_counts(self) -> None:
        shards = len(self.names)
        if not shards or self.digests.shape != (shards, DIGEST_BYTES):
            raise ValueError(f"it names {shards} shards and has digests of shape {self.digests.shape}")
        for counted, what in ((self.sizes, "sizes"), (self.mtimes, "times"), (self.shard_samples, "counts")):
            if len(counted) != shards:
                raise ValueError(f"it names {shards} shards and has {len(counted)} {what}")
        if len(self.etags) not in (0, shards):
            raise ValueError(f"it names {shards} shards and has {len(self.etags)} ETags")
        if len(set(self.names)) != shards:
            raise ValueError("it names a shard twice")
        # A name is joined to a folder, so it may not lead out of it.
        for name in self.names:
            if name.startswith("/") or ".." in PurePosixPath(name).parts or not name:
                raise ValueError(f"it names the shard {name!r}, which is not a path below the data set's root")
        if not len(self.block_sizes) or int(self.block_sizes.min()) < 1 or int(self.shard_samples.min()) < 1:
            raise ValueError("it has a block or a shard without samples")
        for total, what in (
            (int(self.block_sizes.sum(dtype=np.int64)), "its blocks hold"),
            (int(self.shard_samples.sum(dtype=np.int64)), "its shards hold"),
            (len(self.lengths), "lengths are"),
        ):
            if total != self.samples:
                raise ValueError(f"it has {self.samples} samples, but {what} {total}")

    def _fingerprint(self) -> str:
        hasher = hashlib.blake2b(digest_size=16, person=b"shardfeed data")
        # A digest is of all headers of a shard, which fix every member's name and place.
        hasher.update(msgspec.json.encode([list(self.names), self.shard_samples.tolist()]))
        for array in (self.digests, self.block_sizes):
            hasher.update(np.ascontiguousarray(array).data)
        return hasher.hexdigest()


def is_manifest(path: str | os.PathLike[str]) -> bool:
    """Say whether a file is a manifest of any version, by how it begins. Raises OSError where it cannot be read."""
    with Path(path).open("rb") as file:
        return _FORMAT.encode() in file.read(_FIRST_BYTES)


def _load_same(path: Path, fingerprint: str) -> Manifest:
    manifest = Manifest.load(path)
    if manifest.fingerprint != fingerprint:
        raise ConfigError(f"manifest {path} was replaced by another one meanwhile; start again")
    return manifest


def cut_blocks(lengths: U8, block_bytes: int) -> U2:
    """Cut one shard's samples, given their lengths u8[n] in bytes, into blocks.

    A block ends with the sample by which its bytes reach ``block_bytes``, or with its 4,096th.

    :returns: u2: samples of each block; they add up to n.
    """
    ends = np.cumsum(lengths)
    sizes = []
    first = 0
    before = 0
    while first < len(ends):
        last = int(np.searchsorted(ends, np.uint64(min(before + block_bytes, _MOST_OFFSET))))
        stop = min(last + 1, first + BLOCK_SAMPLES, len(ends))
        sizes.append(stop - first)
        first = stop
        before = int(ends[stop - 1])
    return np.array(sizes, dtype=np.uint16)
