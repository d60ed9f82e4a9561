"""The session behind a `RemoteDataset`, made when first needed, and made anew after pickling or a fork."""

from __future__ import annotations

import os
import time
import weakref
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from shardfeed.addresses import Endpoints
from shardfeed.local import LOCAL, LocalServer
from shardfeed.peer import Framing, Greeting
from shardfeed.session import Session
from shardfeed_wire.curve import ClientKeys, load_client_keys
from shardfeed_wire.errors import ConnectError

__all__ = ["Connection"]

_LOOK_AFTER = 2.0
"""Seconds between looks at whether a private server has ended instead of coming up."""


class Connection:
    """Where a stream is, and the one session with its servers. A copy of it, pickled or forked, has its own session."""

    def __init__(
        self,
        endpoints: Endpoints,
        stream: str,
        *,
        job: str,
        framing: Framing,
        shared_memory: bool,
        connect_timeout: float,
        curve: str | None = None,
    ) -> None:
        """Connect to nothing yet. ``curve`` is a client's key file; each session reads it: no copy has the secret."""
        self._curve = curve
        self._endpoints, self._stream = endpoints, stream
        self._greeting = Greeting(job=job, rank=0, software=_software(), framing=framing, shared_memory=shared_memory)
        self._connect_timeout = connect_timeout
        self._open: _Open | None = None

    def session(self, rank: int = 0) -> Session:
        """Return the session, connecting as ``rank`` where there is none in this process; see `Session`."""
        if self._open is not None and self._open.owner != os.getpid():
            self._open.forget()
            self._open = None
        if self._open is None:
            greeting = replace(self._greeting, rank=rank)
            keys = None if self._curve is None else load_client_keys(self._curve)
            self._open = _Open(self._endpoints, self._stream, greeting, self._connect_timeout, keys)
            self._open.end_with(self)
        return self._open.session

    def renew(self) -> None:
        """Let go of a session that an error has ended, so that `session` makes another. Blocks for a moment."""
        if self._open is not None and self._open.owner == os.getpid() and self._open.session.over:
            self.close()

    def counters(self) -> dict[str, int]:
        """Return the counters of the pass under way; see `Session.counters`."""
        return self._open.session.counters() if self._open is not None and self._open.owner == os.getpid() else {}

    def close(self) -> None:
        """End the session, if this process has one. Idempotent."""
        if self._open is not None:
            opened, self._open = self._open, None
            if opened.owner == os.getpid():
                opened.close()
            else:
                opened.forget()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the session behind: the copy connects by itself."""
        return {**self.__dict__, "_open": None}


class _Open:
    """A session and the private servers that it needs."""

    def __init__(
        self,
        endpoints: Endpoints,
        stream: str,
        greeting: Greeting,
        connect_timeout: float,
        keys: ClientKeys | None,
    ) -> None:
        self.owner = os.getpid()
        self._keys = keys
        self._servers: list[LocalServer] = []
        self._finalizer: weakref.finalize[Any, Any] | None = None
        try:
            if not callable(endpoints):
                endpoints = [self._start(url) if url.startswith(LOCAL) else url for url in endpoints]
            self.session = self._connect(endpoints, stream, greeting, connect_timeout)
        except BaseException:
            self._stop_servers()
            raise

    def _start(self, endpoint: str) -> str:
        self._servers.append(LocalServer(endpoint))
        return self._servers[-1].url

    def _connect(self, urls: Endpoints, stream: str, greeting: Greeting, connect_timeout: float) -> Session:
        """Connect; where private servers were started, look now and then whether one has ended instead."""
        if not self._servers:
            return Session(urls, stream, greeting, connect_timeout=connect_timeout, keys=self._keys)
        deadline = time.monotonic() + connect_timeout
        while True:
            try:
                return Session(urls, stream, greeting, connect_timeout=min(_LOOK_AFTER, deadline - time.monotonic()))
            except ConnectError as error:
                for server in self._servers:
                    server.check()
                if time.monotonic() >= deadline:
                    output = "".join(f"\nIt printed:\n{server.output()}" for server in self._servers)
                    raise ConnectError(f"{error}{output}") from None

    def end_with(self, owner: object) -> None:
        """Close when ``owner`` is collected, or the interpreter ends."""
        self._finalizer = weakref.finalize(owner, _Open._end, self.session, self._servers, self.owner)

    @staticmethod
    def _end(session: Session, servers: list[LocalServer], owner: int) -> None:
        if os.getpid() == owner:
            session.close()
            for server in servers:
                server.close()

    def forget(self) -> None:
        """Let go without touching what belongs to the process that we were forked from."""
        if self._finalizer is not None:
            self._finalizer.detach()

    def close(self) -> None:
        """End the session, then the servers."""
        if self._finalizer is not None:
            self._finalizer()

    def _stop_servers(self) -> None:
        for server in self._servers:
            server.close()


def _software() -> str:
    for distribution in ("shardfeed-client", "shardfeed"):
        try:
            return f"{distribution} {version(distribution)}"
        except PackageNotFoundError:
            continue
    return "shardfeed, not installed"
