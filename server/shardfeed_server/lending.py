"""Answers lent as memory to clients on the same machine, over a Unix socket beside the endpoints.

A client that reaches the socket, runs as the server's own user, and shows the token of its Welcome, gets
the descriptor of each slot once, and then hears where in it an answer lies. What is lent is bounded by a
budget, in equal parts for the clients attached; an answer above it is sent as to any other client. A
client that ends, however, releases with its connection all that it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections import OrderedDict

from shardfeed_server.answered import Answered
from shardfeed_server.events import logger
from shardfeed_server.slots import Slot
from shardfeed_wire import sharing
from shardfeed_wire.errors import MessageError
from shardfeed_wire.messages import SharedMemory
from shardfeed_wire.sharing import Attach, Dropped, Lent, Release, encode

__all__ = ["Lending"]

_LEAST_BYTES = 65_536
"""A smaller answer is cheaper to send: its client would copy its tensors anyway."""

_MOST_SLOTS = 128
"""How many may be lent at once: each takes two descriptors here and two in each client that knows it."""

_MOST_TOKENS = 65_536
_BACKLOG = 128
_AGAIN = 1.0

log = logger("shardfeed.server")


class Lending:
    """The Unix socket, the clients attached to it, and the budget. All of it runs in the front's event loop."""

    def __init__(self, budget: int) -> None:
        """Listen. ``budget`` is in bytes of slots lent at once, over all clients."""
        self._budget = budget
        self._name = f"shardfeed-{secrets.token_hex(16)}"
        self._tokens: OrderedDict[bytes, bytes] = OrderedDict()
        self._borrowers: dict[bytes, _Borrower] = {}
        self._connections: set[_Borrower] = set()
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)
            self._socket.bind(sharing.address(self._name))
            self._socket.listen(_BACKLOG)
            self._loop.add_reader(self._socket, self._accept)
        except BaseException:
            self._socket.close()
            raise

    def offer(self, peer: bytes) -> SharedMemory:
        """Return what a client is to be told that was just welcomed as ``peer``."""
        token = secrets.token_bytes(16)
        self._tokens[token] = peer
        if len(self._tokens) > _MOST_TOKENS:
            self._tokens.popitem(last=False)
        return SharedMemory(socket=self._name, token=token)

    def lend(self, peer: bytes, answered: Answered) -> bool:
        """Lend an answer, which is then released when the client says so or ends; False where it must be sent."""
        borrower = self._borrowers.get(peer)
        if borrower is None or answered.size < _LEAST_BYTES:
            return False
        cost = self._cost(answered.slot)
        if borrower.cost + cost > self._budget // len(self._borrowers):
            return False
        return borrower.lend(answered, cost)

    def close(self) -> None:
        """Take everything back and close. Idempotent."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for connection in tuple(self._connections):
            connection.close()

    def _cost(self, slot: Slot) -> int:
        """Return what lending a slot takes from the budget: its bytes, but descriptors are scarce too."""
        return max(slot.size, self._budget // _MOST_SLOTS)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptor left: it would stay readable
            log.warning("a client that asks for shared memory is left waiting", error=str(error))
            self._loop.remove_reader(self._socket)
            self._loop.call_later(_AGAIN, self._listen_again)
            return
        if sharing.is_of_this_user(connection):
            self._connections.add(_Borrower(self, connection, self._loop))
        else:
            connection.close()

    def _listen_again(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket, self._accept)

    # Called by the borrowers

    def attach(self, borrower: _Borrower, token: bytes) -> None:
        """Take a client that says whose connection it belongs to. Raises MessageError where that is not so."""
        peer = self._tokens.pop(token, None)
        if peer is None or borrower.peer is not None:
            raise MessageError("its token is of no client here")
        borrower.peer = peer
        self._borrowers[peer] = borrower

    def gone(self, borrower: _Borrower) -> None:
        """Forget a client."""
        self._connections.discard(borrower)
        if borrower.peer is not None and self._borrowers.get(borrower.peer) is borrower:
            del self._borrowers[borrower.peer]


class _Borrower:
    """One client's connection."""

    def __init__(self, lending: Lending, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.peer: bytes | None = None
        self.cost = 0
        self._lending, self._connection, self._loop = lending, connection, loop
        self._lent: dict[int, tuple[Answered, int]] = {}
        self._known: dict[int, Slot] = {}
        self._closed = False
        connection.setblocking(False)
        loop.add_reader(connection, self._read)

    def lend(self, answered: Answered, cost: int) -> bool:
        """Tell the client where an answer lies; False where that cannot be said now."""
        slot = answered.slot
        if slot.dropped or slot.number in self._lent:  # the client has the same answer already
            return False
        new = slot.number not in self._known
        own = answered.own
        lent = Lent(
            slot=slot.number,
            start=answered.answer.start,
            end=answered.answer.end,
            size=slot.size if new else 0,
            request=None if own is None else own.request,
            seconds=None if own is None else own.seconds,
        )
        try:
            socket.send_fds(self._connection, [encode(lent)], [slot.descriptor] if new else [])
        except OSError:  # its queue is full, or it is gone: reading says so
            return False
        if new:
            self._known[slot.number] = slot
            slot.told.add(self._dropped)
        self._lent[slot.number] = answered, cost
        self.cost += cost
        return True

    def _dropped(self, number: int) -> None:
        """Tell the client that a slot is gone; where it does not read, it may keep what it cannot use."""
        self._known.pop(number, None)
        with contextlib.suppress(OSError):
            self._connection.send(encode(Dropped(slot=number)))

    def _read(self) -> None:
        try:
            while not self._closed:
                message = self._connection.recv(sharing.MESSAGE_BYTES)
                if not message:
                    self.close()
                    return
                match sharing.decode_from_borrower(message):
                    case Attach(token=token):
                        self._lending.attach(self, token)
                    case Release(slot=slot):
                        self._release(slot)
        except BlockingIOError:
            pass
        except (OSError, MessageError):
            self.close()

    def _release(self, number: int) -> None:
        if number not in self._lent:
            raise MessageError(f"it does not have slot {number}")
        answered, cost = self._lent.pop(number)
        self.cost -= cost
        answered.release()

    def close(self) -> None:
        """End the connection: all that was lent is released. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._connection)
        self._connection.close()
        for slot in self._known.values():
            slot.told.discard(self._dropped)
        while self._lent:
            self._lent.popitem()[1][0].release()
        self._lending.gone(self)
