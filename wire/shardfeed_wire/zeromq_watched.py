"""A ZeroMQ socket watched by an asyncio loop: its descriptor, and when it has let go of an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

__all__ = ["Watched", "unbind"]

_UNBIND_SECONDS = 2.0


class Watched:
    """The descriptor of a ZeroMQ socket, while the loop watches it.

    It must be let go before the socket is closed: the next socket may get the same number.
    """

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._descriptor: int | None = None

    @property
    def started(self) -> bool:
        """Whether the loop watches it."""
        return self._descriptor is not None

    def start(self, socket: zmq.Socket[bytes], changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever the socket's state may have changed."""
        descriptor = socket.getsockopt(zmq.FD)
        assert isinstance(descriptor, int)
        asyncio.get_running_loop().add_reader(descriptor, changed)
        self._descriptor = descriptor

    def stop(self) -> None:
        """Let go. Idempotent."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            asyncio.get_running_loop().remove_reader(descriptor)


async def unbind(raw: zmq.Socket[bytes], url: str) -> None:
    """Let go of an endpoint and return when ZeroMQ's thread has, which takes connections until then."""
    try:
        monitor = raw.get_monitor_socket(zmq.EVENT_CLOSED)
    except zmq.ZMQError:  # no descriptor is left: closing the socket ends it as well
        return
    changed, watched = asyncio.Event(), Watched()
    watched.start(monitor, changed.set)
    try:
        raw.unbind(url)
        async with asyncio.timeout(_UNBIND_SECONDS):
            while not monitor.poll(0):
                await changed.wait()
                changed.clear()
    except (zmq.ZMQError, TimeoutError):
        pass  # closing the socket ends it as well, if later
    finally:
        watched.stop()
        raw.disable_monitor()
        monitor.close(0)
