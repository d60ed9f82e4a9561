"""The seam between the protocol and a network: Transport, Listener and Channel, and who serves which URL scheme.

A transport carries messages, each a list of chunks, whole and in order between one client and one
server: in the order in which their sends return, so that a small message may overtake a large one
whose send is still under way. It knows nothing of what they hold. Contracts stand in the docstrings here, and one
conformance suite holds every transport to them. All coroutines run in one asyncio event loop and no
method may be called from another thread.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from shardfeed_wire.curve import Keys
from shardfeed_wire.endpoint import parse_endpoint
from shardfeed_wire.errors import EndpointError

__all__ = ["Channel", "Limits", "Listener", "Network", "Transport", "register", "schemes"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one side takes from the other at most.

    ``frame_bytes``: bytes of one frame; ``frames``: frames of one message; ``messages``: messages
    that wait unread for each peer; ``message_bytes``, for listeners: about how much a peer may send
    without a whole message arriving, None for no bound of its own; ``silent_seconds``, for listeners:
    about how long a peer may take for its first message, and for any message from its first bytes to
    its last, None for ever. What exceeds them ends the channel.
    """

    frame_bytes: int
    frames: int = 4_096
    messages: int = 64
    message_bytes: int | None = None
    silent_seconds: float | None = None


class Channel(abc.ABC):
    """One connection from a client to one server. Once broken or closed it stays so; connect anew."""

    @abc.abstractmethod
    async def send(self, chunks: Sequence[Any]) -> None:
        """Hand over one message.

        Blocks while the peer's unread messages reach the limit. Raises BrokenChannelError where the
        connection ended and ClosedChannelError after `close`. When cancelled, the message was sent
        whole or not at all. ``chunks`` must not change until the call returns.
        """

    @abc.abstractmethod
    async def receive(self) -> list[Any]:
        """Return the next message's chunks, buffers that belong to the caller.

        Blocks until there is one. Raises BrokenChannelError, once all that arrived has been returned,
        and ClosedChannelError after `close`. When cancelled, nothing is lost.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End the connection at once, without waiting for what is unsent. Idempotent; does not block."""


class Listener(abc.ABC):
    """A bound endpoint and the clients connected to it."""

    url: str
    """The URL bound, with the port that was taken where port 0 was asked for."""

    @abc.abstractmethod
    async def receive(self) -> tuple[bytes, list[Any]]:
        """Return a peer's identity and the chunks of its next message; blocks until there is one.

        No peer of another listener of the same transport has the same identity.
        Messages beyond the limits are dropped, with their peer where the transport can tell it to go.
        When cancelled, nothing is lost.
        """

    @abc.abstractmethod
    async def send(self, peer: bytes, chunks: Sequence[Any]) -> None:
        """Send one message to a peer and return when its chunks are not needed any more.

        Blocks while the peer does not read; other peers are not held up. Raises BrokenChannelError
        where the peer is gone: the message may then have arrived or not. When cancelled before the
        message was taken, nothing was sent; after that the chunks may still be read for a while.
        """

    def user(self, peer: bytes) -> str | None:
        """Return the public key that a peer has proven to hold; None where it did not have to prove any."""
        return None

    def gone(self, peer: bytes) -> bool:
        """Say whether a peer's connection has ended, where the transport knows."""
        return False

    def drop(self, peer: bytes, reason: str) -> None:  # noqa: B027 - not every transport can
        """End a peer's connection, which misbehaves, and log ``reason``. Does nothing where the transport cannot."""

    @abc.abstractmethod
    async def close(self, linger: float = 0.0) -> None:
        """Take no more messages, wait up to ``linger`` seconds for what is being sent, and unbind. Idempotent."""


class Transport(abc.ABC):
    """One way to carry messages, with whatever its listeners and channels share."""

    encrypts = False
    """Whether it can encrypt and authenticate with CURVE keys."""

    keys: Keys | None = None
    """The keys to do so with; set before the first use, where there are any and it ``encrypts``."""

    @abc.abstractmethod
    def listen(self, url: str, limits: Limits) -> Listener:
        """Bind an endpoint. Does not block. Raises EndpointError where it cannot be bound, with the cause."""

    @abc.abstractmethod
    async def connect(self, url: str, limits: Limits) -> Channel:
        """Connect to an endpoint and return when the peer has answered on the transport's level.

        Blocks without a deadline of its own. Raises BrokenChannelError, with the cause, where nobody
        listens or the listener speaks something else. When cancelled, nothing is left behind.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release what is shared. All listeners and channels must be closed. Idempotent."""


_modules = {"tcp": "shardfeed_wire.zeromq", "ipc": "shardfeed_wire.zeromq", "sctp": "shardfeed_wire.sctp"}
_factories: dict[str, Callable[[], Transport]] = {}


def register(scheme: str, factory: Callable[[], Transport]) -> None:
    """Let ``factory()`` make the transport for URLs of ``scheme``."""
    _factories[scheme] = factory


def schemes() -> list[str]:
    """Return the URL schemes that some transport serves, sorted."""
    return sorted(_modules.keys() | _factories.keys())


class Network:
    """The transports that one client or server has in use, opened when first needed."""

    def __init__(self, keys: Keys | None = None) -> None:
        """Open nothing yet. With ``keys`` only what they encrypt and authenticate is spoken."""
        self._keys = keys
        self._open: dict[Callable[[], Transport], Transport] = {}

    def listen(self, url: str, limits: Limits) -> Listener:
        """Bind ``url`` on the transport of its scheme; see `Transport.listen`."""
        return self._transport(url).listen(url, limits)

    async def connect(self, url: str, limits: Limits) -> Channel:
        """Connect to ``url`` on the transport of its scheme; see `Transport.connect`."""
        return await self._transport(url).connect(url, limits)

    def close(self) -> None:
        """Close every transport in use. Idempotent."""
        while self._open:
            self._open.popitem()[1].close()

    def _transport(self, url: str) -> Transport:
        scheme = parse_endpoint(url).scheme
        if scheme not in _factories:
            if scheme not in _modules:
                raise EndpointError(f"endpoint {url!r}: no transport for {scheme!r}; there are: {', '.join(schemes())}")
            import_module(_modules[scheme])  # registers itself
        factory = _factories[scheme]
        if factory not in self._open:
            transport = factory()
            if self._keys is not None and not transport.encrypts:
                transport.close()
                raise EndpointError(
                    f"endpoint {url!r}: {scheme}:// has no encryption, and CURVE keys are given; use tcp://, or leave "
                    "the keys out where the network is trusted"
                )
            transport.keys = self._keys
            self._open[factory] = transport
        return self._open[factory]
