"""One generation of a server's streams: opened, their workers started, ready to answer.

A server has one from its start, and another each time that it re-reads its configuration; the old one goes on
until it has answered what it was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shardfeed_server.config import ServerConfig
from shardfeed_server.cores import count_cores
from shardfeed_server.events import logger
from shardfeed_server.jobs import StreamSource
from shardfeed_server.opening import open_manifest, share_cache
from shardfeed_server.service import ServedStream
from shardfeed_server.worker_process import WorkFailedError
from shardfeed_server.workers import Workers
from shardfeed_wire.errors import DataError

__all__ = ["Generation", "Preparation", "StoppedError"]

log = logger("shardfeed.server")


class StoppedError(Exception):
    """Told to stop while streams were made ready. Stays inside the server."""


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """Streams, and the workers that answer for them."""

    streams: tuple[ServedStream, ...]
    workers: Workers

    async def stop(self) -> None:
        """End the workers, and let go of the shards."""
        await self.workers.stop()
        for source in self.workers.sources:
            source.reader.close()


class Preparation:
    """Makes generations, until it is told to stop."""

    def __init__(self, said: Callable[[str], None], indexing: Callable[[str, int, int], None]) -> None:
        """``said`` gets how far it is, in words; ``indexing`` a stream's name, its shards scanned, and all."""
        self._said, self._indexing = said, indexing
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Raise StoppedError out of what is under way, soon."""
        self._stop.set()

    async def make(self, config: ServerConfig) -> Generation:
        """Open the streams and start their workers. Raises as `serve` does, and leaves nothing behind then."""
        workers = Workers([], config.workers or count_cores(), sample_timeout=config.sample_timeout)
        generation = Generation((), workers)
        try:
            for name in config.streams:
                workers.sources = [*workers.sources, await self._open(name, config)]
            await asyncio.to_thread(share_cache, [source.reader for source in workers.sources], config)
            self._said("starting the workers, which make the first samples")
            await workers.start()
            return Generation(tuple([await self._describe(workers, source) for source in workers.sources]), workers)
        except BaseException:
            await generation.stop()
            raise

    async def _open(self, name: str, config: ServerConfig) -> StreamSource:
        def progress(done: int, total: int) -> None:
            if self._stop.is_set():
                raise StoppedError
            self._said(f"indexing stream {name!r}, {done * 100 // total} % of its shards")
            self._indexing(name, done, total)

        stream = config.streams[name]
        manifest, reader = await asyncio.to_thread(open_manifest, stream, progress)
        for excluded in manifest.excluded:
            log.warning("a shard is left out for good", stream=name, reason=excluded.reason)
        return StreamSource(name, stream, manifest, reader, config.code_dir)

    async def _describe(self, workers: Workers, source: StreamSource) -> ServedStream:
        describing = asyncio.create_task(workers.describe(source.name))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([describing, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not describing.done():
                raise StoppedError
            return ServedStream(describing.result(), source.manifest)
        except WorkFailedError as error:
            raise DataError(f"stream {source.name!r}: {error}") from None
        finally:
            describing.cancel()
            stopped.cancel()
