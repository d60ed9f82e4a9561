"""Samples' bytes from far shards: whole blocks, several at a time, ahead of who reads them, through a cache."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from webdataset.blockcache import BlockCache
from webdataset.manifest import Manifest
from webdataset.remote import Ranges, RemoteIdentity, open_ranges, read_range

__all__ = ["CACHE_BYTES", "CONNECTIONS", "PATIENCE", "RemoteBlocks", "Traffic"]

CACHE_BYTES = 2 << 30
CONNECTIONS = 8
PATIENCE = 30.0


@dataclass(slots=True)
class Traffic:
    """What one reader did: samples found in the cache or in a block just fetched, blocks fetched and their bytes."""

    hits: int = 0
    misses: int = 0
    fetched: int = 0
    fetched_bytes: int = 0


class RemoteBlocks:
    """Reads byte ranges of far shards; for one thread, which fetching does not hold up.

    It pickles without its threads and connections, and shares its cache with the process it goes to.
    """

    def __init__(self, manifest: Manifest, urls: Sequence[str], identities: Sequence[RemoteIdentity | None]) -> None:
        """Open nothing yet.

        :param urls: of every shard, query and all. :param identities: None for shards that cannot be read.
        """
        self._manifest = manifest
        self._urls = list(urls)
        self._identities = list(identities)
        self._patience = PATIENCE
        self._start()
        self.cache = self._make_cache(CACHE_BYTES, None)

    def _start(self) -> None:
        self.traffic = Traffic()
        self._ranges: Ranges | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        # A claim keeps other processes off, not other threads of this one: a request may ask for a block
        # that an earlier one's thread is still fetching.
        self._turns = [threading.Lock() for _ in range(64)]
        self._ahead: deque[int] = deque()
        self._coming: dict[int, Future[bytes | bytearray]] = {}

    def set_cache(self, budget: int, folder: Path | None, patience: float) -> None:
        """Bound the cache, and choose where it lies; let no fetching take longer than ``patience`` seconds.

        :raises ConfigError: the folder cannot be used.
        """
        cache = self._make_cache(budget, folder)
        self.cache.close()
        self.cache = cache
        self._patience = patience

    def expect(self, samples: Iterable[int]) -> None:
        """Say which samples, by number, are read next, in order: their blocks are fetched ahead. Does not block."""
        for coming in self._coming.values():
            coming.cancel()
        numbers = np.fromiter(samples, np.int64)
        blocks = (np.searchsorted(self._manifest.block_first, numbers, side="right") - 1).tolist()
        self._coming = {}
        self._ahead = deque(dict.fromkeys(blocks))
        self._go_on()

    def read(self, shard: int, start: int, length: int) -> bytes:
        """Read ``length`` bytes of a shard, which lie in one block. Blocks until they are there.

        :raises ShardError: they cannot be had, or the shard changed.
        """
        block = self._block(shard, start)
        within = start - self.cache.span(block)[0]
        data = self.cache.get(block, within, length)
        if data is None:
            data = bytes(self._missed(block)[within : within + length])
        else:
            self._found(block)
        self._go_on()
        return data

    def read_into(self, shard: int, start: int, length: int, buffers: Sequence[Any]) -> None:
        """Read as `read` does, but into writable buffers of ``length`` bytes altogether, one after the other."""
        block = self._block(shard, start)
        within = start - self.cache.span(block)[0]
        if self.cache.read_into(block, within, length, buffers):
            self._found(block)
        else:
            whole = self._missed(block)
            for buffer in buffers:
                view = memoryview(buffer)
                if view.nbytes:  # a view with a zero in its shape cannot be cast
                    view.cast("B")[:] = whole[within : within + view.nbytes]
                    within += view.nbytes
        self._go_on()

    def close(self) -> None:
        """End the threads, close connections and cache; nothing can be read after that."""
        self._ahead.clear()
        for coming in self._coming.values():
            coming.cancel()
        self._coming = {}
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        if self._ranges is not None:
            self._ranges.close()
            self._ranges = None
        self.cache.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_manifest", "_urls", "_identities", "_patience", "cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def most_bytes(self) -> int:
        """Bytes of a cache that holds every block: those of the shards, and a page a block for rounding."""
        return int(self._manifest.sizes.sum()) + 4096 * len(self._manifest.block_sizes)

    def _make_cache(self, budget: int, folder: Path | None) -> BlockCache:
        seen = [(each.size, each.etag, each.modified_ns) if each else None for each in self._identities]
        identity = hashlib.blake2b(repr(seen).encode(), digest_size=8).hexdigest()
        return BlockCache(self._manifest, budget, folder, identity)

    def _block(self, shard: int, start: int) -> int:
        """Find the block that a sample at an offset of a shard is in."""
        manifest = self._manifest
        first, stop = np.searchsorted(manifest.block_shard, (shard, shard + 1)).tolist()
        firsts = manifest.starts[manifest.block_first[first:stop]]
        return int(first + np.searchsorted(firsts, np.uint64(start), side="right")) - 1

    def _found(self, block: int) -> None:
        self._coming.pop(block, None)
        self.traffic.hits += 1

    def _missed(self, block: int) -> memoryview:
        """Wait for a block that was not in the cache."""
        coming = self._coming.pop(block, None)
        self.traffic.misses += 1
        return memoryview(self._fetch(block) if coming is None else coming.result())

    def _go_on(self) -> None:
        """Have the next blocks fetched, so many that the bytes waiting to be read stay few."""
        while self._ahead and len(self._coming) < 2 * CONNECTIONS:
            block = self._ahead.popleft()
            if not self.cache.holds(block):
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="shardfeed-fetch")
                self._coming[block] = self._pool.submit(self._fetch, block)

    def _fetch(self, block: int) -> bytes | bytearray:
        """Bring a block, unless another process just did. Runs in any thread."""
        shard = int(self._manifest.block_shard[block])
        identity = self._identities[shard]
        assert identity is not None, "who reads makes sure that the shard is readable"
        start, length = self.cache.span(block)
        with self._turns[block % len(self._turns)], self.cache.claim(block, self._patience / 3):
            kept = self.cache.get(block, 0, length)
            if kept is not None:
                return kept
            name, url = self._manifest.names[shard], self._urls[shard]
            data = read_range(self._open(url), url, name, identity, start, length, patience=self._patience * 2 / 3)
            with self._lock:
                self.traffic.fetched += 1
                self.traffic.fetched_bytes += length
            self.cache.put(block, data)
            return data

    def _open(self, url: str) -> Ranges:
        with self._lock:
            if self._ranges is None:
                self._ranges = open_ranges(url, CONNECTIONS)
            return self._ranges
