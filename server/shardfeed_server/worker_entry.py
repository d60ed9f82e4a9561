"""What a worker process is started with. It imports next to nothing: what is imported here, each worker imports anew.

The fork server has `shardfeed_server.worker` and what that needs already. The front's side of the link,
`shardfeed_server.worker_process`, needs asyncio and structlog, a fifth of a second for each worker.
"""

from __future__ import annotations

from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from shardfeed_server.jobs import StreamSource

__all__ = ["SentDescriptor", "enter"]


class SentDescriptor:
    """A descriptor that travels with a process's arguments, and is an int of its own there."""

    def __init__(self, descriptor: int) -> None:
        """Wrap it; it stays the caller's."""
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[object, ...]:
        return _detach, (DupFd(self._descriptor),)


def _detach(duplicate: object) -> int:
    detached: int = duplicate.detach()  # type: ignore[attr-defined]  # typeshed does not know DupFd's result
    return detached


def enter(link: socket.socket, progress: int, sources: Sequence[StreamSource]) -> None:
    """Work in this process until the front closes the link."""
    from shardfeed_server.worker import work  # the fork server has it already, the front never needs it

    work(link, progress, sources)
