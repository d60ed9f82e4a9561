"""Waiting for the other end of a plain stream, which may never come: the log says so, and in the end an error does."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import zmq

from shardfeed_wire.errors import StarvedError

__all__ = ["wait_for"]

_SAID_AFTER = (5.0, 30.0, 120.0)

log = logging.getLogger("shardfeed")


def wait_for(poller: zmq.Poller, timeout: float | None, what: str, again: float | None = None) -> Iterator[None]:
    """Yield each time that something may have happened on the poller's sockets; the caller stops when it has.

    ``again`` is after how many seconds to yield though nothing has, for sockets that try anew by themselves.
    Blocks in between. After 5, 30 and 120 s the log says that ``what`` is waited for. Raises StarvedError
    after ``timeout`` seconds; None waits for ever.
    """
    began = time.monotonic()
    said = [seconds for seconds in _SAID_AFTER if timeout is None or seconds < timeout]
    while True:
        waited = time.monotonic() - began
        if timeout is not None and waited >= timeout:
            raise StarvedError(f"waited {timeout:g} s for {what}; start it, or see whether both sides mean one address")
        if said and waited >= said[0]:
            log.warning("waiting for %s for %.0f s", what, said.pop(0))
        limits = [seconds - waited for seconds in (*said[:1], timeout) if seconds is not None]
        limits += [] if again is None else [again]
        poller.poll(max(1, round(1_000 * min(limits))) if limits else None)
        yield
