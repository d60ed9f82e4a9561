"""What the front itself says to its peers: in order, a bounded number waiting, and nothing for one that never reads."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from shardfeed_wire.errors import BrokenChannelError, ClosedChannelError
from shardfeed_wire.transport import Listener

__all__ = ["Replies"]

_MOST_WAITING = 512
_PATIENCE = 30.0
_UNREAD = "it does not read what it asked for"


class Replies:
    """Small messages to peers. A peer that does not take them is cut off, where the transport can."""

    def __init__(self) -> None:
        """Have nothing to say yet."""
        self._waiting: dict[tuple[Listener, bytes], deque[list[Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, listener: Listener, peer: bytes, chunks: list[Any]) -> None:
        """Send a message soon, after those before it. Does not block."""
        waiting = self._waiting.get((listener, peer))
        if waiting is None:
            self._waiting[listener, peer] = deque([chunks])
            task = asyncio.create_task(self._send_all(listener, peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif len(waiting) < _MOST_WAITING:
            waiting.append(chunks)
        else:
            listener.drop(peer, _UNREAD)

    async def close(self) -> None:
        """Send no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send_all(self, listener: Listener, peer: bytes) -> None:
        loop, waiting = asyncio.get_running_loop(), self._waiting[listener, peer]
        try:
            while waiting:
                impatient = loop.call_later(_PATIENCE, listener.drop, peer, _UNREAD)
                try:
                    await listener.send(peer, waiting.popleft())
                finally:
                    impatient.cancel()
        except (BrokenChannelError, ClosedChannelError):
            pass  # it asks again, elsewhere or anew
        finally:
            del self._waiting[listener, peer]
