"""A server's HTTP port: whether it lives, whether it is ready, and its figures."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator
from typing import Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from shardfeed_server.events import logger
from shardfeed_server.exposition import expose
from shardfeed_server.figures import Figures, Standing
from shardfeed_server.http_address import DEFAULT, OFF, parse_http
from shardfeed_server.http_guests import Guests
from shardfeed_wire.endpoint import Endpoint
from shardfeed_wire.errors import EndpointError

__all__ = ["Reporter", "http_port"]

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_INDEX = "shardfeed, a loader server\n/healthz: it lives\n/readyz: it serves, or why not\n/metrics: for Prometheus\n"
_END_SECONDS = 1.0
_MOST_CONNECTIONS = 64
"""Many more than Prometheus and probes keep, and few beside the descriptors that a process may have."""

log = logger("shardfeed.server")


class Reporter(Protocol):
    """Who is asked how a server does. All calls come in the event loop."""

    @property
    def unready(self) -> str | None:
        """Why requests are not answered, None where they are."""

    def report(self) -> tuple[Standing, Figures]:
        """Return how the server stands and a copy of its figures that does not change any more."""


@contextlib.asynccontextmanager
async def http_port(address: str | None, reporter: Reporter) -> AsyncIterator[str]:
    """Answer at ``host:port`` while the block runs; gives the port's URL.

    With None that is 127.0.0.1:9880, or a free port where that one is taken, with a warning: a second server on
    one host is no mistake. Of more than 64 connections the one that said nothing for longest is closed. Raises
    EndpointError where an address that was given cannot be listened on.
    """
    sock = _listen(address)
    answers = _Answers(reporter)
    application = web.Application()
    application.router.add_get("/", answers.index)
    application.router.add_get("/healthz", answers.health)
    application.router.add_get("/readyz", answers.readiness)
    application.router.add_get("/metrics", answers.metrics)
    runner = web.AppRunner(
        application, access_log=None, logger=_quiet(), keepalive_timeout=75.0, shutdown_timeout=_END_SECONDS
    )
    try:
        host, port = sock.getsockname()[:2]
        await runner.setup()
        assert runner.server is not None  # once it is set up
        server = await asyncio.get_running_loop().create_server(Guests(runner.server, _MOST_CONNECTIONS), sock=sock)
        try:
            yield str(Endpoint("http", host=host, port=port))
        finally:
            server.close()
    finally:
        await runner.cleanup()
        sock.close()


def _quiet() -> logging.Logger:
    """Return aiohttp's logger without what is the guest's fault: each traceback costs the front's loop milliseconds."""
    aiohttp = logging.getLogger("aiohttp.server")
    aiohttp.addFilter(_is_ours)
    return aiohttp


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class _Answers:
    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    async def index(self, _: web.Request) -> web.Response:
        return web.Response(text=_INDEX)

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readiness(self, _: web.Request) -> web.Response:
        reason = self._reporter.unready
        return web.Response(text="ready\n") if reason is None else web.Response(text=f"{reason}\n", status=503)

    async def metrics(self, _: web.Request) -> web.Response:
        text = await asyncio.to_thread(expose, *self._reporter.report())
        return web.Response(body=text, headers={"Content-Type": _TEXT})


def _listen(address: str | None) -> socket.socket:
    try:
        return _bind(address or DEFAULT)
    except OSError as error:
        if address is not None or error.errno != errno.EADDRINUSE:
            where = address or DEFAULT
            raise EndpointError(
                f"http: cannot listen on {where}: {os.strerror(error.errno) if error.errno else error}; choose another "
                f"address with `--http`, or `--http {OFF}` for none"
            ) from error
    sock = _bind(f"{parse_http(DEFAULT).host}:0")
    log.warning(
        "the usual HTTP port is taken, by another server as it seems; `--http` chooses one",
        taken=parse_http(DEFAULT).port,
        port=sock.getsockname()[1],
    )
    return sock


def _bind(address: str) -> socket.socket:
    """Listen, over IPv4 and IPv6 where the host is ``[::]``. Raises OSError."""
    endpoint = parse_http(address)
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, where = found[0]
    both = endpoint.host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(where[:2], family=family, backlog=128, dualstack_ipv6=both)
