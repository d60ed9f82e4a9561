"""Run one loader server from its configuration until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import uvloop

from shardfeed_server.conduct import USUAL_PATIENCE, Patience
from shardfeed_server.config import ServerConfig
from shardfeed_server.descriptors import check_descriptors, raise_limit
from shardfeed_server.generation import Preparation, StoppedError
from shardfeed_server.http_address import OFF
from shardfeed_server.lending import Lending
from shardfeed_server.outputs import Outputs
from shardfeed_server.reloading import Reloading
from shardfeed_server.service import REQUEST_LIMITS, Service
from shardfeed_wire.curve import ServerKeys, load_server_keys
from shardfeed_wire.endpoint import parse_endpoint
from shardfeed_wire.freed_memory import give_back_freed_memory
from shardfeed_wire.messages import StreamInfo
from shardfeed_wire.transport import Listener, Network

__all__ = ["Observer", "Serving", "serve"]

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


def serve(
    config: ServerConfig,
    observer: Observer,
    *,
    end_with: int | None = None,
    remove_folder: bool = False,
    reread: Callable[[], ServerConfig] | None = None,
    patience: Patience = USUAL_PATIENCE,
    log_json: bool = False,
) -> None:
    """Serve until SIGTERM, SIGINT or, where given, the end of the pipe with descriptor ``end_with``; then drain.

    With ``remove_folder`` the folders of the Unix sockets, made for them, are removed at the end.

    At SIGHUP the streams are opened anew, by what ``reread`` returns then, or as they were told at first where
    it is not given. ``log_json`` has the processes of outputs log as JSON.

    Blocks. Raises ConfigError or EndpointError for what the configuration says wrongly, ConfigError where this
    process may have too few descriptors, ShardError that names every bad shard, and SampleError or ShapeError
    where a stream's first samples cannot be made. An exception that ends a listener, which is a defect, ends
    the server and is raised, too.
    """
    raise_limit()
    give_back_freed_memory()
    server = _Server(config, observer, reread or (lambda: config), patience, ["--log-json"] if log_json else [])
    with contextlib.suppress(StoppedError):
        uvloop.run(server.run(end_with, remove_folder=remove_folder))
    if server.failure is not None:
        raise server.failure


class _Server:
    def __init__(
        self,
        config: ServerConfig,
        observer: Observer,
        reread: Callable[[], ServerConfig],
        patience: Patience,
        output_options: Sequence[str],
    ) -> None:
        self._config, self._observer, self._reread, self._patience = config, observer, reread, patience
        self._output_options = output_options
        self.failure: BaseException | None = None
        """Why a listener ended, where it was not closed."""
        self._stop = asyncio.Event()
        self._on_stop: Callable[[], None] = lambda: None
        self._had_terminal = os.isatty(0)

    async def run(self, end_with: int | None, *, remove_folder: bool) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        if end_with is not None:
            loop.add_reader(end_with, self._host_is_gone, end_with)
        keys = load_server_keys(self._config.curve) if self._config.curve else None
        outputs = Outputs(self._config.outputs, list(self._config.streams), self._output_options)
        network, private = Network(keys), Network()
        listeners: list[Listener] = []
        try:
            # One after the other: where one cannot be bound, those before it are closed below.
            limits = replace(REQUEST_LIMITS, silent_seconds=self._patience.silent)
            listeners.extend(network.listen(url, limits) for url in self._config.bind)
            listeners.extend(private.listen(url, limits) for url in outputs.endpoints)
            await self._run_on(listeners, keys, outputs)
        finally:
            if end_with is not None:
                loop.remove_reader(end_with)
            for listener in listeners:
                await listener.close(_LINGER_SECONDS)
            network.close()
            private.close()
            outputs.remove()
            _remove_sockets(self._config.bind[: len(listeners)], folders=remove_folder)

    async def _run_on(self, listeners: list[Listener], keys: ServerKeys | None, outputs: Outputs) -> None:
        config = self._config
        name = config.name or f"{socket.gethostname()}:{parse_endpoint(listeners[0].url).port or os.getpid()}"
        lending = Lending(config.shared_bytes) if config.shared_bytes else None
        service = Service(
            name,
            software=_software(),
            send_bytes=config.send_bytes,
            queue_requests=config.queue_requests,
            answer_cache_bytes=config.answer_cache_bytes,
            lending=lending,
            patience=self._patience,
        )
        if keys is not None:
            service.may_read = keys.clients.may_read
        service.trusted = listeners[len(config.bind) :]
        receiving = [asyncio.create_task(service.serve(listener)) for listener in listeners]
        for task, listener in zip(receiving, listeners, strict=True):
            task.add_done_callback(partial(self._heard_all, listener.url))
        preparation = Preparation(service.say_progress, self._observer.indexing)
        streams = Reloading(service, preparation, config, self._reread)
        streams.on_change = outputs.streams_change
        self._on_stop = preparation.stop
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hung_up, streams)
        reloading: asyncio.Task[None] | None = None
        try:
            async with self._http(service) as http:
                generation = await streams.start()
                check_descriptors(generation.workers.count)
                reloading = asyncio.create_task(streams.run())
                infos = tuple(stream.info for stream in generation.streams)
                urls = tuple(listener.url for listener in listeners[: len(config.bind)])
                self._observer.ready(Serving(urls, infos, generation.workers.count, name, http))
                outputs.start(failed=self._told_to_stop)
                await self._stop.wait()
                self._observer.draining()
                await outputs.stop()
                await service.drain(_DRAIN_SECONDS)
                outputs.check()
        finally:
            await outputs.stop()
            if reloading is not None:
                reloading.cancel()
                await asyncio.gather(reloading, return_exceptions=True)
            for listener in listeners:
                await listener.close(_LINGER_SECONDS)
            await asyncio.gather(*receiving, return_exceptions=True)
            await service.close()
            await streams.close()
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

    def _host_is_gone(self, end_with: int) -> None:
        asyncio.get_running_loop().remove_reader(end_with)  # a pipe that has ended stays readable
        self._told_to_stop()

    def _heard_all(self, url: str, task: asyncio.Task[None]) -> None:
        """Stop where a listener has ended by an exception: whoever asks there would wait for ever."""
        if not task.cancelled() and (failure := task.exception()) is not None and self.failure is None:
            failure.add_note(f"The listener on {url} failed, and the server ends with it; this is a defect.")
            self.failure = failure
            self._told_to_stop()

    def _told_to_stop(self) -> None:
        self._on_stop()
        self._stop.set()

    def _hung_up(self, streams: Reloading) -> None:
        """Re-read the configuration; but a terminal that is gone has said the same, and meant that we go, too."""
        if self._had_terminal and not os.isatty(0):
            self._told_to_stop()
        else:
            streams.ask()


def _remove_sockets(urls: tuple[str, ...], *, folders: bool) -> None:
    """Remove the files that our Unix sockets leave and, for a private server, the folders made for them."""
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
