"""Blocks of far shards kept near: bounded in bytes, and shared by all processes that hold the same cache.

Every block of a data set has a place of its own in a sparse file, so nothing is ever moved or
allocated: a block that is let go becomes a hole. The file lies in memory without a name (a memfd),
or in a folder. A table says of each block whether it is there. What guards the table are locks of
the kernel's, which end with the process that holds them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import multiprocessing.context
import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np

from shardfeed_wire.errors import ConfigError
from webdataset.manifest import Manifest

__all__ = ["BlockCache"]

_PAGE = 4096
# Some file systems hold files of at most 16 TiB.
_SEGMENT = 1 << 42
_HEADER = 64
_ABSENT, _RESERVED, _PRESENT = 0, 1, 2
_PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_POLL = 0.003
_TABLE_LOCK = 0
_LIBC = ctypes.CDLL(None, use_errno=True)


class BlockCache:
    """The blocks of one manifest, as many as ``budget`` bytes hold; safe for threads and processes.

    It pickles to a process that is being started, which then shares it; any other copy starts empty.
    """

    _table_fd: int
    _segments: list[int]
    _map: mmap.mmap
    _header: np.ndarray[Any, np.dtype[np.int64]]  # bytes held
    _used: np.ndarray[Any, np.dtype[np.int64]]  # a block's, when, in ns
    _generation: np.ndarray[Any, np.dtype[np.uint32]]  # a block's: how often it was let go
    _state: np.ndarray[Any, np.dtype[np.uint8]]  # a block's

    def __init__(self, manifest: Manifest, budget: int, folder: Path | None = None, identity: str = "") -> None:
        """Make or join a cache.

        :param budget: bytes; what counts is whole pages.
        :param folder: where it lies, kept when the process ends; default: in memory, and gone then.
        :param identity: what the shards were when they were opened; a cache in a folder is joined
            where manifest and identity are the same.
        :raises ConfigError: the folder cannot be used.
        """
        self._manifest = manifest
        self._identity = identity
        self.budget = budget
        self.folder = folder
        blocks = len(manifest.block_sizes)
        self._last = int(_round_up(manifest.sizes).sum()) + _PAGE * (blocks + len(manifest.names))
        descriptors = self._in_memory() if folder is None else self._in_folder(folder)
        self._attach(descriptors)

    def get(self, block: int, offset: int, length: int) -> bytes | None:
        """Return ``length`` bytes at ``offset`` of a block, or None where it is not there."""
        if self._state[block] != _PRESENT:
            return None
        generation = self._generation[block]
        fd, position, _ = self._place(block)
        data = os.pread(fd, length, position + offset)
        return data if len(data) == length and self._was_there(block, generation) else None

    def read_into(self, block: int, offset: int, length: int, buffers: Sequence[Any]) -> bool:
        """Read the same into buffers, one after the other; False where it is not there, and they may hold anything."""
        if self._state[block] != _PRESENT:
            return False
        generation = self._generation[block]
        fd, position, _ = self._place(block)
        return os.preadv(fd, buffers, position + offset) == length and self._was_there(block, generation)

    def _was_there(self, block: int, generation: int) -> bool:
        """Say whether a block was not let go while it was read, its place a hole; note that it was used."""
        if self._state[block] != _PRESENT or self._generation[block] != generation:
            return False
        self._used[block] = time.monotonic_ns()
        return True

    def holds(self, block: int) -> bool:
        """Say whether a block is there now."""
        return bool(self._state[block] == _PRESENT)

    def put(self, block: int, data: bytes | bytearray) -> bool:
        """Keep a block, of which the others used longest ago make way; say whether it found room.

        The caller holds its ``claim``, so that nobody else keeps the same one.
        """
        fd, position, length = self._place(block)
        if len(data) != length or _pages(length) > self.budget:
            return False
        with self._table():
            if self._state[block] == _PRESENT:
                return True
            # Reserved, though the claim is the caller's: who reserved it died. Its bytes are counted.
            if self._state[block] == _ABSENT:
                self._make_room(_pages(length))
                self._header[0] += _pages(length)
                self._state[block] = _RESERVED
            self._used[block] = time.monotonic_ns()
            generation = self._generation[block]
        try:
            _write(fd, data, position)
        except OSError:
            # The disk is full: one is served without a cache then.
            self._let_go(block)
            return False
        with self._table():
            if self._generation[block] == generation:
                self._state[block] = _PRESENT
                return True
        _punch(fd, position, _pages(length))
        return False

    @contextmanager
    def claim(self, block: int, patience: float) -> Iterator[None]:
        """Wait until no other process fetches a block, at most ``patience`` seconds; then be the one that does."""
        deadline = time.monotonic() + patience
        place = _HEADER + block
        while not (ours := _lock(self._table_fd, place)) and time.monotonic() < deadline:
            time.sleep(_POLL)
        try:
            yield
        finally:
            if ours:
                _unlock(self._table_fd, place)

    @property
    def held(self) -> int:
        """Bytes held now, never more than ``budget``."""
        return int(self._header[0])

    @property
    def occupied(self) -> int:
        """Bytes that the system says the cache takes, its table left out."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in self._segments)

    def close(self) -> None:
        """Let go of it. In memory it ends with its last holder; in a folder it stays."""
        if self._segments:
            del self._header, self._state, self._generation, self._used
            self._map.close()
            for fd in (self._table_fd, *self._segments):
                os.close(fd)
            self._segments = []

    def __getstate__(self) -> dict[str, Any]:
        state = {name: self.__dict__[name] for name in ("_manifest", "_identity", "budget", "folder", "_last")}
        if multiprocessing.context.get_spawning_popen() is not None:
            state["descriptors"] = [DupFd(fd) for fd in (self._table_fd, *self._segments)]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        shared = state.pop("descriptors", None)
        self.__dict__.update(state)
        if shared is None:
            descriptors = self._in_memory() if self.folder is None else self._in_folder(self.folder)
        else:
            descriptors = [_reopened(each.detach()) for each in shared]
        self._attach(descriptors)

    # Making it

    def _in_memory(self) -> list[int]:
        names = ["table", *(f"blocks-{number}" for number in range(self._count()))]
        return [os.memfd_create(f"shardfeed-{name}", os.MFD_CLOEXEC) for name in names]

    def _in_folder(self, folder: Path) -> list[int]:
        """Open the files of this data set; those of others that nobody uses now are removed."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # After a crash of the machine the table may know of blocks that never reached the disk.
        own = folder / f"shardfeed-{self._manifest.fingerprint}-{self._identity or '0'}-{boot}"
        try:
            own.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            table = os.open(own / "table", flags, 0o600)
            fcntl.flock(table, fcntl.LOCK_SH)
            segments = [os.open(own / f"blocks-{number}", flags, 0o600) for number in range(self._count())]
            for other in folder.glob("shardfeed-*-*-*"):
                if other != own:
                    _remove_unused(other)
        except OSError as error:
            raise ConfigError(
                f"cache_dir {folder}: {error.strerror or error}; name a folder on a local disk"
            ) from error
        return [table, *segments]

    def _attach(self, descriptors: list[int]) -> None:
        self._table_fd = descriptors[0]
        self._segments = descriptors[1:]
        blocks = len(self._manifest.block_sizes)
        try:
            for fd in self._segments:
                os.ftruncate(fd, _SEGMENT + int(self._manifest.sizes.max()))
            size = _HEADER + blocks * (8 + 4 + 1)
            if os.fstat(self._table_fd).st_size < size:
                os.ftruncate(self._table_fd, size)
            _punch(self._segments[0], 2 * _SEGMENT, _PAGE)  # where nothing is: can it be done at all?
        except OSError as error:
            place = f"cache_dir {self.folder}" if self.folder else "the cache in memory"
            raise ConfigError(f"{place}: {error.strerror}; use a folder on ext4, xfs, btrfs or tmpfs") from error
        self._map = mmap.mmap(self._table_fd, size)
        self._header = np.frombuffer(self._map, np.int64, 1)
        self._used = np.frombuffer(self._map, np.int64, blocks, _HEADER)
        self._generation = np.frombuffer(self._map, np.uint32, blocks, _HEADER + 8 * blocks)
        self._state = np.frombuffer(self._map, np.uint8, blocks, _HEADER + 12 * blocks)
        sizes = _round_up(self._manifest.sizes)
        self._shard_base = np.cumsum(sizes) - sizes
        self._threads = threading.Lock()

    def _count(self) -> int:
        return self._last // _SEGMENT + 1

    # Places

    def span(self, block: int) -> tuple[int, int]:
        """Return where a block starts in its shard, and how long it is, in bytes."""
        first = int(self._manifest.block_first[block])
        last = first + int(self._manifest.block_sizes[block]) - 1
        start = int(self._manifest.starts[first])
        return start, int(self._manifest.starts[last]) + int(self._manifest.lengths[last]) - start

    def _place(self, block: int) -> tuple[int, int, int]:
        """Return a block's descriptor, its position there, and its length; no page is shared by two blocks."""
        start, length = self.span(block)
        shard = int(self._manifest.block_shard[block])
        # One page more for each block makes up for rounding up where it starts.
        before = block + shard
        position = _pages(int(self._shard_base[shard]) + start) + _PAGE * before
        return self._segments[position // _SEGMENT], position % _SEGMENT, length

    # Letting go

    def _make_room(self, need: int) -> None:
        """Let blocks go until ``need`` bytes are free, and some more, so that this is not done for every block."""
        if self._header[0] + need <= self.budget:
            return
        least = max(0, self.budget - need - self.budget // 16)
        there = np.flatnonzero(self._state)
        for block in there[np.argsort(self._used[there], kind="stable")].tolist():
            if self._header[0] <= least:
                break
            self._drop(block)

    def _let_go(self, block: int) -> None:
        with self._table():
            if self._state[block] != _ABSENT:
                self._drop(block)

    def _drop(self, block: int) -> None:
        fd, position, length = self._place(block)
        self._state[block] = _ABSENT
        self._generation[block] += 1
        self._header[0] -= _pages(length)
        _punch(fd, position, _pages(length))

    @contextmanager
    def _table(self) -> Iterator[None]:
        """Be the only one that changes the table."""
        with self._threads:
            while not _lock(self._table_fd, _TABLE_LOCK):
                time.sleep(_POLL / 10)
            try:
                yield
            finally:
                _unlock(self._table_fd, _TABLE_LOCK)


def _round_up(sizes: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return -(-sizes // _PAGE) * _PAGE


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _write(fd: int, data: bytes | bytearray, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view = view[written:]
        position += written


def _punch(fd: int, position: int, length: int) -> None:
    if _LIBC.fallocate(fd, _PUNCH_HOLE, ctypes.c_int64(position), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _lock(fd: int, place: int) -> bool:
    """Take a lock of this open file description, which ends with it; return whether it could be had."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, place))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _unlock(fd: int, place: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, place))


def _flock(kind: int, place: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, place, 1, 0)


def _reopened(fd: int) -> int:
    """Open what a descriptor leads to anew: locks belong to an open file, and this process needs its own."""
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(fd)
    return own


def _remove_unused(folder: Path) -> None:
    """Remove the cache of another data set, unless a process has it open."""
    with suppress(OSError):
        table = os.open(folder / "table", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(table, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for file in (*folder.glob("blocks-*"), folder / "table"):
                file.unlink()
            folder.rmdir()
        finally:
            os.close(table)
