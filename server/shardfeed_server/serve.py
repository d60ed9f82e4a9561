"""Run one loader server from its configuration until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import uvloop

from shardfeed_server.config import ServerConfig, StreamConfig
from shardfeed_server.http_address import OFF
from shardfeed_server.jobs import StreamSource
from shardfeed_server.lending import Lending
from shardfeed_server.outputs import Outputs
from shardfeed_server.service import REQUEST_LIMITS, ServedStream, Service
from shardfeed_server.worker_process import WorkFailedError
from shardfeed_server.workers import Workers
from shardfeed_wire.curve import ServerKeys, load_server_keys
from shardfeed_wire.endpoint import parse_endpoint
from shardfeed_wire.errors import ConfigError, DataError
from shardfeed_wire.messages import StreamInfo
from shardfeed_wire.transport import Listener, Network
from webdataset.indexing import cached_manifest, root_of
from webdataset.manifest import Manifest
from webdataset.remote import is_remote, public_url
from webdataset.remoteblocks import PATIENCE
from webdataset.remotemanifest import load_manifest
from webdataset.shards import ShardReader

__all__ = ["Observer", "Serving", "count_cores", "open_manifest", "serve", "share_cache"]

log = logging.getLogger("shardfeed.server")

_DRAIN_SECONDS = 30.0
_LINGER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Serving:
    """What a server that is ready serves, for whoever started it; ``http`` is its HTTP port's URL, None where off."""

    endpoints: tuple[str, ...]
    streams: tuple[StreamInfo, ...]
    workers: int
    name: str
    http: str | None


@dataclass(frozen=True, slots=True)
class Observer:
    """Who is told how a server is doing. All three are called in the server's own thread or one of its helpers.

    ``indexing`` gets a stream's name, the shards scanned, and all; ``ready`` what is served;
    ``draining`` that the server was told to stop.
    """

    indexing: Callable[[str, int, int], None] = lambda _stream, _done, _total: None
    ready: Callable[[Serving], None] = lambda _serving: None
    draining: Callable[[], None] = lambda: None


class _StoppedError(Exception):
    """Told to stop while starting."""


def serve(config: ServerConfig, observer: Observer, *, end_with: int | None = None) -> None:
    """Serve until SIGTERM, SIGINT or, where given, the end of the pipe with descriptor ``end_with``; then drain.

    Blocks. Raises ConfigError or EndpointError for what the configuration says wrongly, ShardError that
    names every bad shard, and SampleError or ShapeError where a stream's first samples cannot be made.
    """
    with contextlib.suppress(_StoppedError):
        uvloop.run(_Server(config, observer).run(end_with))


def open_manifest(
    stream: StreamConfig, progress: Callable[[int, int], None] | None = None
) -> tuple[Manifest, ShardReader]:
    """Return a stream's manifest, given, cached or made now, and a reader of its shards. Blocks.

    ``progress`` gets the shards scanned, and all. Raises ShardError that names every bad shard, and
    ConfigError where there is no shard or the manifest given is of other ones.
    """
    paths = stream.shard_paths()
    far = bool(paths) and is_remote(paths[0])
    if stream.manifest is None:
        manifest = cached_manifest(
            paths, block_bytes=stream.block_bytes, exclude_bad=stream.exclude_bad, progress=progress
        )
        return manifest, ShardReader(manifest, urls=_urls(paths) if far else None)
    manifest = load_manifest(stream.manifest)
    root, names = root_of(paths if far else [str(Path(path).absolute()) for path in paths])
    known = {*manifest.names, *(left_out.name for left_out in manifest.excluded)}
    unknown = sorted(set(names) - known if stream.partial else set(names) ^ known)
    if unknown:
        raise ConfigError(
            f"the manifest {public_url(stream.manifest)} is of other shards than those below {root}: "
            f"{', '.join(unknown[:5])}; make it again with `shardfeed index`"
        )
    return manifest, ShardReader(manifest, root, urls=_urls(paths) if far else None, partial=stream.partial)


def share_cache(readers: Sequence[ShardReader], config: ServerConfig) -> None:
    """Divide the cache's bytes among the streams whose shards are far: alike, but to none more than its shards have.

    Raises ConfigError where the cache's folder cannot be used.
    """
    far = sorted((reader.far for reader in readers if reader.far is not None), key=lambda blocks: blocks.most_bytes)
    left = config.cache_bytes
    for waiting, blocks in zip(range(len(far), 0, -1), far, strict=True):
        budget = min(left // waiting, blocks.most_bytes)
        folder = None if config.cache_dir is None else Path(config.cache_dir)
        # A worker that stays at one row for longer is taken for hung.
        blocks.set_cache(budget, folder, patience=min(PATIENCE, config.sample_timeout / 2))
        left -= budget


def _urls(paths: Sequence[str]) -> dict[str, str]:
    """Return what to ask for by the shards' names: a URL may be signed, and a manifest knows no signatures."""
    return dict(zip(root_of(paths)[1], paths, strict=True))


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


class _Server:
    def __init__(self, config: ServerConfig, observer: Observer) -> None:
        self._config, self._observer = config, observer
        self._stop = asyncio.Event()
        self._stopping = False

    async def run(self, end_with: int | None) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        if end_with is not None:
            loop.add_reader(end_with, self._told_to_stop)
        keys = load_server_keys(self._config.curve) if self._config.curve else None
        outputs = Outputs(self._config.outputs, list(self._config.streams))
        network, private = Network(keys), Network()
        listeners: list[Listener] = []
        try:
            listeners += [network.listen(url, REQUEST_LIMITS) for url in self._config.bind]
            listeners += [private.listen(url, REQUEST_LIMITS) for url in outputs.endpoints]
            await self._run_on(listeners, keys, outputs)
        finally:
            if end_with is not None:
                loop.remove_reader(end_with)
            for listener in listeners:
                await listener.close(_LINGER_SECONDS)
            network.close()
            private.close()
            outputs.remove()
            _remove_sockets(self._config.bind, folders=end_with is not None)

    async def _run_on(self, listeners: list[Listener], keys: ServerKeys | None, outputs: Outputs) -> None:
        config = self._config
        name = config.name or f"{socket.gethostname()}:{parse_endpoint(listeners[0].url).port or os.getpid()}"
        workers = Workers([], config.workers or count_cores(), sample_timeout=config.sample_timeout)
        lending = Lending(config.shared_bytes) if config.shared_bytes else None
        service = Service(
            name,
            workers,
            software=_software(),
            send_bytes=config.send_bytes,
            queue_requests=config.queue_requests,
            lending=lending,
        )
        if keys is not None:
            service.may_read = keys.clients.may_read
        service.trusted = listeners[len(config.bind) :]
        receiving = [asyncio.create_task(service.serve(listener)) for listener in listeners]
        try:
            async with self._http(service) as http:
                workers.sources = [await self._source(stream, service) for stream in config.streams]
                await asyncio.to_thread(share_cache, [source.reader for source in workers.sources], config)
                service.progress = "starting the workers, which make the first samples"
                await workers.start()
                streams = [await self._describe(workers, source) for source in workers.sources]
                service.open(streams)
                infos = tuple(stream.info for stream in streams)
                urls = tuple(listener.url for listener in listeners[: len(config.bind)])
                self._observer.ready(Serving(urls, infos, workers.count, name, http))
                outputs.start(failed=self._told_to_stop)
                await self._stop.wait()
                self._observer.draining()
                await outputs.stop()
                await service.drain(_DRAIN_SECONDS)
                outputs.check()
        finally:
            await outputs.stop()
            for listener in listeners:
                await listener.close(_LINGER_SECONDS)
            await asyncio.gather(*receiving, return_exceptions=True)
            await service.close()
            await workers.stop()
            if lending is not None:
                lending.close()  # last: what is taken back may be written to by a worker

    @contextlib.asynccontextmanager
    async def _http(self, service: Service) -> AsyncIterator[str | None]:
        if self._config.http == OFF:
            yield None
            return
        from shardfeed_server.http import http_port  # aiohttp takes a quarter of a second to import

        async with http_port(self._config.http, service) as url:
            yield url

    async def _source(self, name: str, service: Service) -> StreamSource:
        def progress(done: int, total: int) -> None:
            if self._stopping:
                raise _StoppedError
            service.progress = f"indexing stream {name!r}, {done * 100 // total} % of its shards"
            self._observer.indexing(name, done, total)

        stream = self._config.streams[name]
        manifest, reader = await asyncio.to_thread(open_manifest, stream, progress)
        for excluded in manifest.excluded:
            log.warning("stream %r: left out for good: %s", name, excluded.reason)
        return StreamSource(name, stream, manifest, reader, self._config.code_dir)

    async def _describe(self, workers: Workers, source: StreamSource) -> ServedStream:
        describing = asyncio.create_task(workers.describe(source.name))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([describing, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not describing.done():
                raise _StoppedError
            return ServedStream(describing.result(), source.manifest)
        except WorkFailedError as error:
            raise DataError(f"stream {source.name!r}: {error}") from None
        finally:
            describing.cancel()
            stopped.cancel()

    def _told_to_stop(self) -> None:
        self._stopping = True
        self._stop.set()


def _remove_sockets(urls: tuple[str, ...], *, folders: bool) -> None:
    """Remove the files that Unix sockets leave and, for a private server, the folders made for them."""
    for url in urls:
        path = parse_endpoint(url).path
        if path:
            Path(path).unlink(missing_ok=True)
            if folders:
                with contextlib.suppress(OSError):  # not empty, or gone
                    Path(path).parent.rmdir()


def _software() -> str:
    try:
        return f"shardfeed {version('shardfeed')}"
    except PackageNotFoundError:
        return "shardfeed, not installed"
