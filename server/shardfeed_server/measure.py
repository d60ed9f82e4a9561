"""Measure how fast this machine makes a stream's samples: its own workers, its own recipe, no network."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import uvloop

from shardfeed_server.config import ServerConfig
from shardfeed_server.jobs import StreamSource
from shardfeed_server.opening import open_manifest, share_cache
from shardfeed_server.worker_process import WorkFailedError
from shardfeed_server.workers import Workers
from shardfeed_wire.errors import DataError
from shardfeed_wire.messages import Get, StreamInfo
from webdataset.manifest import Manifest

__all__ = ["REQUEST_ROWS", "Measured", "measure"]

REQUEST_ROWS = 32
"""Samples of one request: a batch's part, as several servers would get it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What so many workers did at once.

    ``seconds`` passed by the clock. ``reading``, ``decoding`` and ``collating`` are the seconds that the workers
    spent at each, and ``cpu`` the seconds of processor time that they used, added over all; ``size`` is the bytes
    of all answers.
    """

    workers: int
    samples: int
    seconds: float
    reading: float
    decoding: float
    collating: float
    cpu: float
    size: int

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds


def measure(config: ServerConfig, stream: str, *, workers: int, seconds: float) -> Measured:
    """Make samples of a stream with so many workers for about ``seconds`` seconds, in random order. Blocks.

    The workers' start, and a first request for each, are not counted. What the page cache holds is not read from a
    disk, as in a server. Raises ShardError and DataError where shards or samples are bad.
    """
    manifest, reader = open_manifest(config.streams[stream])
    share_cache([reader], config)
    source = StreamSource(stream, config.streams[stream], manifest, reader, config.code_dir)
    measured: Measured = uvloop.run(_measure(source, workers, seconds, config.sample_timeout))
    return measured


async def _measure(source: StreamSource, count: int, seconds: float, sample_timeout: float) -> Measured:
    workers = Workers([source], count, sample_timeout=sample_timeout)
    await workers.start()
    try:
        info = await workers.describe(source.name)
        run = _Run(workers, info, source.manifest)
        await asyncio.gather(*(run.request() for _ in range(2 * count)))
        return await run.during(seconds, count)
    except WorkFailedError as error:
        raise DataError(f"stream {source.name!r}: {error}") from None
    finally:
        await workers.stop()


class _Run:
    """Requests for random samples, two for each worker at any time."""

    def __init__(self, workers: Workers, info: StreamInfo, manifest: Manifest) -> None:
        self._workers, self._info = workers, info
        here = np.ones(len(manifest.names), np.bool_)
        if info.readable is not None:
            here = np.unpackbits(np.frombuffer(info.readable, np.uint8), bitorder="little")[: len(here)] > 0
        self._blocks = np.flatnonzero(here[manifest.block_shard]).astype(np.uint32)
        self._sizes = manifest.block_sizes[self._blocks]
        self._ends = np.cumsum(self._sizes, dtype=np.int64)
        self._random = np.random.default_rng(0)
        self._number = 0
        self._done: list[tuple[float, float, float, float, int]] = []

    async def request(self) -> None:
        """Have one request's samples made."""
        self._number += 1
        positions = self._random.integers(0, self._ends[-1], REQUEST_ROWS)
        which = np.searchsorted(self._ends, positions, side="right")
        index = (positions - (self._ends[which] - self._sizes[which])).astype(np.uint16)
        get = Get(
            request=self._number,
            stream=self._info.name,
            data=self._info.data,
            recipe=self._info.recipe,
            seed=0,
            epoch=self._number,  # other draws for a sample that comes again
        )
        answered = await self._workers.answer(
            get, self._blocks[which].tobytes(), index.tobytes(), since=time.monotonic()
        )
        answered.release()
        spent = answered.work.seconds
        self._done.append((spent.reading, spent.decoding, spent.collating, answered.work.cpu, answered.size))

    async def during(self, seconds: float, count: int) -> Measured:
        """Ask one request after the other until ``seconds`` have passed, and count all that were answered."""
        self._done.clear()
        began = time.monotonic()

        async def ask() -> None:
            while time.monotonic() - began < seconds:
                await self.request()

        await asyncio.gather(*(ask() for _ in range(2 * count)))
        took = time.monotonic() - began
        reading, decoding, collating, cpu, size = (sum(column) for column in zip(*self._done, strict=True))
        return Measured(
            workers=count,
            samples=len(self._done) * REQUEST_ROWS,
            seconds=took,
            reading=reading,
            decoding=decoding,
            collating=collating,
            cpu=cpu,
            size=int(size),
        )
