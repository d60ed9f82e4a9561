"""Samples' bytes by manifest, from shards that are still the ones that were indexed, near or far."""

from __future__ import annotations

import errno
import functools
import os
import resource
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from shardfeed_wire.errors import ShardError
from webdataset.manifest import Manifest
from webdataset.remote import RemoteIdentity, is_remote, open_ranges, public_url
from webdataset.remoteblocks import PATIENCE, RemoteBlocks
from webdataset.remoteindex import identify_remote_shard
from webdataset.tarindex import index_shard, same_samples

__all__ = ["Identity", "ShardReader", "identify_shard"]

Identity: TypeAlias = tuple[int, int, int, int]
"""Device, inode, size in bytes, modification time in ns."""

_LOOKS_AT_A_TIME = 32
_MOST_OPEN = 1024
_AGAIN = "make the manifest again with `shardfeed index`"


@dataclass(frozen=True, slots=True)
class _Shard:
    name: str
    path: str
    identity: Identity | RemoteIdentity | None
    reason: str = ""
    size: int = 0


class ShardReader:
    """Reads byte ranges of a manifest's shards; for one thread.

    It pickles, without its descriptors and without looking at the shards again: make it once, and
    give it to worker processes.
    """

    def __init__(
        self,
        manifest: Manifest,
        root: str | os.PathLike[str] | None = None,
        *,
        partial: bool = False,
        max_open: int | None = None,
        urls: Mapping[str, str] | None = None,
    ) -> None:
        """Look at every shard and compare it with the manifest. Blocks.

        A shard of another size has changed. One of the same size and another modification time is
        scanned again, and accepted where its headers are the same, as after a copy; a far one, at
        some samples only. Far shards are read in whole blocks, through a cache.

        :param root: the folder or URL that the shards' names are relative to; default: the manifest's.
        :param partial: go on when shards are missing or changed; ``readable`` says which are not.
        :param max_open: descriptors kept open; default: 1,024, or a quarter of what the process may have. In random
            order samples come from as many shards in turn as the order has lanes, and opening one takes longer than
            reading a small sample.
        :param urls: what to ask for, by the names of far shards, where it is more than root and name
            (a signature); it appears in no message.
        :raises ShardError: shards are missing or changed since (unless ``partial``); all are named.
        :raises ConfigError: shards of this kind need an extra.
        """
        self._max_open = _most_open() if max_open is None else max_open
        self._open: OrderedDict[int, int] = OrderedDict()
        self._far: RemoteBlocks | None = None
        count = len(manifest.names)
        places = [manifest.path(number, root) for number in range(count)]
        if is_remote(places[0]):
            places = [(urls or {}).get(name, place) for name, place in zip(manifest.names, places, strict=True)]
            self._shards = _look_from_afar(manifest, places)
        else:
            # On a network's file system each look takes a while.
            with ThreadPoolExecutor(min(_LOOKS_AT_A_TIME, count)) as pool:
                self._shards = list(pool.map(functools.partial(_look_at, manifest), places, range(count)))
        bad = [shard for shard in self._shards if shard.identity is None]
        if bad and (not partial or len(bad) == len(self._shards)):
            shown = "\n  ".join(shard.reason for shard in bad[:50])
            message = bad[0].reason if len(bad) == 1 else f"{len(bad)} of {len(self._shards)} shards:\n  {shown}"
            raise ShardError(message, shard=bad[0].name if len(bad) == 1 else None)
        if is_remote(places[0]):
            seen = [shard.identity if isinstance(shard.identity, RemoteIdentity) else None for shard in self._shards]
            self._far = RemoteBlocks(manifest, places, seen)

    @property
    def far(self) -> RemoteBlocks | None:
        """What reads far shards, with the cache and the traffic; None where the shards are files."""
        return self._far

    @property
    def readable(self) -> list[bool]:
        """Say for each shard number whether it can be read here."""
        return [shard.identity is not None for shard in self._shards]

    def check(self, number: int) -> None:
        """Make sure that a shard's path still leads to the file seen at the start. Blocks for one stat.

        Of a far shard nothing is asked: whatever is fetched of it is compared with what was seen.

        :raises ShardError: it is another file, or the file has changed, or was never readable.
        """
        shard = self._readable_shard(number)
        if self._far is not None:
            return
        try:
            identity = _identity(os.stat(shard.path))  # noqa: PTH116 - once a request and shard
        except OSError as error:
            raise _fault(shard.name, f"{shard.path} is gone: {error.strerror}; {_AGAIN}") from error
        if identity != shard.identity:
            raise _fault(shard.name, f"{shard.path} changed since it was opened; {_AGAIN}")

    def expect(self, samples: Iterable[int]) -> None:
        """Say which samples, by number, are read next, in order: far ones are fetched ahead. Does not block."""
        if self._far is not None:
            self._far.expect(samples)

    def read(self, number: int, start: int, length: int) -> bytes:
        """Read ``length`` bytes of a shard from offset ``start``. Blocks.

        ``check`` the shard first, once for as many reads as belong together.

        :raises ShardError: it was never readable, has become another file, the range is not in it,
            or reading fails.
        """
        shard = self._readable_shard(number)
        if start < 0 or length < 0 or start + length > shard.size:
            raise _fault(shard.name, f"it has {shard.size} bytes, none at {start} to {start + length}; {_AGAIN}")
        if self._far is not None:
            return self._far.read(number, start, length)
        try:
            fd = self._descriptor(number, shard)
            data = os.pread(fd, length, start)
            return data if len(data) == length else _read_on(fd, shard.name, data, start, length)
        except OSError as error:
            raise _fault(shard.name, f"cannot read {shard.path}: {error.strerror}") from error

    def read_into(self, number: int, start: int, length: int, buffers: Sequence[Any]) -> bool:
        """Read as `read` does, but into writable buffers of ``length`` bytes altogether, one after the other. Blocks.

        :returns: False where that would take more than one call, or the range is not there: ``read`` then.
        :raises ShardError: as `read`.
        """
        shard = self._shards[number]
        if start < 0 or start + length > shard.size:  # which is 0 where it was never readable
            return False
        if self._far is not None:
            self._far.read_into(number, start, length, buffers)
            return True
        try:
            descriptor = self._open.get(number)  # short, for this runs once a sample
            if descriptor is None:
                descriptor = self._descriptor(number, shard)
            return os.preadv(descriptor, buffers, start) == length
        except OSError as error:
            raise _fault(shard.name, f"cannot read {shard.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close all descriptors; the reader of files can be used again and opens them anew."""
        if self._far is not None:
            self._far.close()
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        return {"_max_open": self._max_open, "_shards": self._shards, "_open": OrderedDict(), "_far": self._far}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)

    def _readable_shard(self, number: int) -> _Shard:
        shard = self._shards[number]
        if shard.identity is None:
            raise ShardError(shard.reason, shard=shard.name)
        return shard

    def _descriptor(self, number: int, shard: _Shard) -> int:
        fd = self._open.get(number)
        if fd is not None:
            self._open.move_to_end(number)
            return fd
        fd = self._opened(shard.path)
        # Between check() and here the path may have come to lead elsewhere.
        if _identity(os.fstat(fd)) != shard.identity:
            os.close(fd)
            raise _fault(shard.name, f"{shard.path} changed since it was opened; {_AGAIN}")
        if len(self._open) >= self._max_open:
            os.close(self._open.popitem(last=False)[1])
        self._open[number] = fd
        return fd

    def _opened(self, path: str) -> int:
        """Open a file; where the process may have no more, give up half of those that are open for it."""
        while True:
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.EMFILE or not self._open:
                    raise
            kept = len(self._open) // 2
            self._max_open = max(1, kept)
            while len(self._open) > kept:
                os.close(self._open.popitem(last=False)[1])


def identify_shard(manifest: Manifest, number: int, path: str) -> Identity:
    """Compare a file with what the manifest says of a shard, and return what identifies the file.

    Blocks: for a stat, or for a scan of its headers where only the modification time differs.

    :raises ShardError: it cannot be read, or has changed since the manifest was made.
    """
    name = manifest.names[number]
    try:
        identity = _identity(Path(path).stat())
    except OSError as error:
        raise _fault(name, f"cannot read {path}: {error.strerror}") from error
    size = manifest.sizes[number]
    if identity[2] != size:
        raise _fault(name, f"changed since it was indexed: {path} has {identity[2]} bytes, not {size}; {_AGAIN}")
    if identity[3] != manifest.mtimes[number] and not same_samples(
        index_shard(path, name), manifest.digests[number].tobytes()
    ):
        raise _fault(name, f"changed since it was indexed: {path} holds other samples; {_AGAIN}")
    return identity


def _most_open() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if soft == resource.RLIM_INFINITY else max(1, min(_MOST_OPEN, soft // 4))


def _look_at(manifest: Manifest, path: str, number: int) -> _Shard:
    try:
        identity = identify_shard(manifest, number, path)
        return _Shard(manifest.names[number], path, identity, size=identity[2])
    except ShardError as error:
        return _Shard(manifest.names[number], path, None, str(error))


def _look_from_afar(manifest: Manifest, urls: list[str]) -> list[_Shard]:
    ranges = open_ranges(urls[0], _LOOKS_AT_A_TIME)

    def look(number: int) -> _Shard:
        name, url = manifest.names[number], urls[number]
        try:
            identity = identify_remote_shard(manifest, number, ranges, url, patience=PATIENCE)
            return _Shard(name, public_url(url), identity, size=identity.size)
        except ShardError as error:
            return _Shard(name, public_url(url), None, str(error))

    try:
        with ThreadPoolExecutor(min(_LOOKS_AT_A_TIME, len(urls))) as pool:
            return list(pool.map(look, range(len(urls))))
    finally:
        ranges.close()


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _fault(name: str, reason: str) -> ShardError:
    return ShardError(f"shard {name}: {reason}", shard=name)


def _read_on(fd: int, name: str, data: bytes, start: int, length: int) -> bytes:
    """Complete a read that gave less than asked for, as some file systems do and Linux does at 2 GiB."""
    parts = [data]
    have = len(data)
    while have < length:
        data = os.pread(fd, length - have, start + have)
        if not data:
            raise _fault(name, f"it ends at byte {start + have}, cut short since it was opened; {_AGAIN}")
        parts.append(data)
        have += len(data)
    return b"".join(parts)
