"""How many connections an HTTP port has: a bound, and who makes way for the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

__all__ = ["Guests"]


class Guests:
    """The connections of one port, at most ``most``: the one that said nothing for longest makes way for the next.

    So whoever asks is answered, however many others only hold a connection, and these cost a known number of
    descriptors. Calling it gives the protocol of the next connection, as ``create_server`` wants it.
    """

    def __init__(self, make: Callable[[], asyncio.Protocol], most: int) -> None:
        """Have nobody yet. ``make`` gives the protocol that answers on a connection."""
        self._make, self._most = make, most
        self._present: dict[_Guest, None] = {}  # in the order in which they last said something

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a connection that is being made."""
        return _Guest(self, self._make())

    def heard(self, guest: _Guest) -> None:
        """Note that a connection was made or said something; where there are too many, the most silent one goes."""
        self._present.pop(guest, None)
        self._present[guest] = None
        if len(self._present) > self._most:
            next(iter(self._present)).leave()

    def left(self, guest: _Guest) -> None:
        """Note that a connection is closing, or closed."""
        self._present.pop(guest, None)


class _Guest(asyncio.Protocol):
    """One connection: counted, and otherwise what answers on it sees."""

    def __init__(self, guests: Guests, answers: asyncio.Protocol) -> None:
        self._guests, self._answers = guests, answers
        self._transport: asyncio.Transport | None = None

    def leave(self) -> None:
        self._guests.left(self)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not its subclasses
        self._answers.connection_made(transport)
        self._guests.heard(self)

    def data_received(self, data: bytes) -> None:
        self._guests.heard(self)
        self._answers.data_received(data)

    def eof_received(self) -> bool | None:
        return self._answers.eof_received()

    def pause_writing(self) -> None:
        self._answers.pause_writing()

    def resume_writing(self) -> None:
        self._answers.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._guests.left(self)
        self._answers.connection_lost(exc)
