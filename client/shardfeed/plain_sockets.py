"""The sockets of plain streams: one for each URL, so that an error can name the one at fault, and what they share."""

from __future__ import annotations

import math
import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import zmq

from shardfeed_wire.errors import ConfigError
from shardfeed_wire.exposure import check_exposure
from shardfeed_wire.plain import PlainEndpoint

__all__ = ["PlainSocket", "PlainSockets", "ReceivingSocket", "SendingSocket", "check_options"]


class PlainSocket(ABC):
    """A socket bound or connected as its URL says."""

    def __init__(self, endpoint: PlainEndpoint) -> None:
        self.endpoint = endpoint

    @abstractmethod
    def open(self) -> None:
        """Bind or connect. Does not wait for the other side. Raises EndpointError where that cannot be, with why."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL, with the port that was taken where port 0 was asked for."""

    @abstractmethod
    def register(self, poller: zmq.Poller) -> None:
        """Let a poller wake when this socket may be used."""

    @abstractmethod
    def close(self, linger: float) -> None:
        """Close it, and remove the file of a Unix socket that was bound; what was sent has ``linger`` seconds to leave.

        Idempotent.
        """


class SendingSocket(PlainSocket):
    """Sends whole messages, of one chunk or several: pushed to one receiver in turn, or published to all."""

    lost = 0
    """Messages that were pushed and that are known not to have arrived."""

    @property
    def publishes(self) -> bool:
        """Whether messages are dropped, not kept, where a receiver is too slow."""
        return self.endpoint.pattern == "pub"

    @abstractmethod
    def push(self, chunks: Sequence[Any]) -> bool:
        """Hand a message to some receiver that has room; False where none has. Does not block."""

    def publish(self, chunks: Sequence[Any]) -> bool:
        """Send a message to every receiver that has room; False where it is lost to some, or nobody subscribed.

        Does not block. Only a socket that `publishes` is asked to; the others have no such thing.
        """
        raise NotImplementedError


class ReceivingSocket(PlainSocket):
    """Receives whole messages, from all who send to it in turn."""

    @abstractmethod
    def receive(self) -> tuple[str, list[memoryview]] | None:
        """Return who sent the next message, in words, and its chunks; None where there is none. Does not block.

        Raises TenbinError for a message that is larger or of more frames than any batch may be.
        """


S = TypeVar("S", bound=PlainSocket)


class PlainSockets(Generic[S]):
    """The sockets of one side, open; what they share; and a poller that knows when one may be used."""

    def __init__(
        self,
        endpoints: Iterable[PlainEndpoint],
        make: Callable[[zmq.Context[zmq.Socket[bytes]], PlainEndpoint], S],
        *,
        owner: object,
        insecure: bool,
    ) -> None:
        """Open a socket for each endpoint, until `close` or the end of the owner. Does not block.

        Raises ConfigError for an address that other machines reach, unless ``insecure``, and EndpointError
        where one cannot be used; nothing is left open then.
        """
        wanted = list(endpoints)
        for endpoint in wanted:
            check_exposure("url", endpoint.url, loopback=not endpoint.is_exposed, insecure=insecure)
        self._owner = os.getpid()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.all: list[S] = []
        self.poller = zmq.Poller()
        self._finalizer = weakref.finalize(owner, self._close)
        try:
            for endpoint in wanted:
                self.all.append(make(self._context, endpoint))
                self.all[-1].open()
                self.all[-1].register(self.poller)
        except BaseException:
            self.close()
            raise

    @property
    def urls(self) -> str:
        """Their URLs in one text, with the ports that were taken where port 0 was asked for."""
        return ", ".join(socket.url for socket in self.all)

    @property
    def is_ours(self) -> bool:
        """Whether this process opened them; a fork must leave them alone."""
        return self._owner == os.getpid()

    @property
    def closed(self) -> bool:
        """Whether they were closed."""
        return not self._finalizer.alive

    def close(self, linger: float = 0.0) -> None:
        """Wait up to ``linger`` seconds until what was sent is on its way, and close. Idempotent."""
        if self._finalizer.detach():
            self._close(linger)

    def _close(self, linger: float = 0.0) -> None:
        if not self.is_ours:
            return
        until = time.monotonic() + linger
        for socket in self.all:
            socket.close(max(0.0, until - time.monotonic()))
        self._context.term()


def check_options(*, framing: str, high_water: int, timeout: float | None) -> None:
    """Raise ConfigError for what makes no sense on either side."""
    if framing not in ("multipart", "single"):
        raise ConfigError(f"framing={framing!r}: it is 'multipart' or 'single'")
    if high_water < 1:
        raise ConfigError(f"high_water={high_water}: it is a number of batches, and at least 1")
    if timeout is not None and not 0 < timeout < math.inf:
        raise ConfigError(f"timeout={timeout}: it is seconds, and above 0; None waits for ever")
