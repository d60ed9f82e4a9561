"""Answers that a server on the same machine lends as memory, and their return once the trainer has dropped the tensors.

The memory is mapped private: a batch that is edited in place is the trainer's own from then on, page by
page, and neither the server nor another client sees it. A fork makes all that is borrowed the
process's own first, for a child may keep it for longer than its parent does.

Where the last tensor goes, in the trainer's thread mostly, no Python code of ours runs: what a signal's handler
raises there (Ctrl-C's KeyboardInterrupt) would be lost, for nobody can catch what a destructor raises. The event loop
looks what went.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import socket
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

from shardfeed.own_pages import has_own_pages
from shardfeed_wire import sharing
from shardfeed_wire.errors import BrokenChannelError, MessageError
from shardfeed_wire.messages import SharedMemory
from shardfeed_wire.sharing import Attach, Dropped, Lent, Release, encode

__all__ = ["Borrowing", "borrow"]

_MADV_POPULATE_WRITE = 23  # mmap does not name it
_MOST_SLOTS = 4_096
_LOOK = 0.02
"""Seconds between two looks for what the trainer dropped; each answer that comes is one, too."""

log = logging.getLogger("shardfeed")


def borrow(offer: SharedMemory) -> Borrowing | None:
    """Attach to the server that made the offer, where it is on this machine and runs as this user; None where not.

    Must be called in the event loop. Does not block.
    """
    if not _has_kernel():
        return None
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:  # no descriptor is left: it can be done without
        return None
    connection.setblocking(False)
    try:
        connection.connect(sharing.address(offer.socket))
        if sharing.is_of_this_user(connection):
            connection.send(encode(Attach(token=offer.token)))
            return Borrowing(connection)
    except OSError:  # another machine, container or network namespace, or a server without room for one more
        pass
    connection.close()
    return None


def _has_kernel() -> bool:
    """Whether the kernel (Linux 5.14) can make memory this process's own, and forget what was written to it."""
    with contextlib.closing(mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) as memory:
        try:
            memory.madvise(_MADV_POPULATE_WRITE)
            memory.madvise(mmap.MADV_DONTNEED)  # not where all memory is locked
        except OSError:
            return False
    return True


class _Loan(weakref.ref[NDArray[np.uint8]]):
    """A slot that is out. Once the last view of it is gone, it puts itself among those that were dropped."""

    __slots__ = ("memory", "slot")

    slot: int
    memory: mmap.mmap


class Borrowing:
    """What one server lends. Its methods are called in the event loop; views of its memory end in any thread."""

    def __init__(self, connection: socket.socket) -> None:
        """Take the connection, attached."""
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._slots: dict[int, mmap.mmap] = {}
        self._out: dict[int, _Loan] = {}
        self._dropped: deque[weakref.ref[NDArray[np.uint8]]] = deque()
        self._looking: asyncio.TimerHandle | None = None
        self._unsaid: deque[int] = deque()
        self._closed = False
        self.lent: Lent | None = None
        """What the server said of the answer that was returned last."""
        self.maps = True
        """Whether this process could map all that was lent so far."""
        _all.add(self)

    async def receive(self) -> memoryview | None:
        """Return the next answer, one buffer in tenbin's framing, which is lent as long as any view of it lives.

        None once the server lends no more. Blocks until then. Raises BrokenChannelError where an answer may be
        lost, and MessageError where the server says what makes no sense.
        """
        while True:
            self._take_back()
            try:
                message, descriptors = sharing.take(self._connection)
            except BlockingIOError:
                await self._readable()
                continue
            except OSError as error:
                raise BrokenChannelError(f"the server's shared memory ended: {error}") from error
            if not message:
                return None
            try:
                answer = self._take(sharing.decode_from_lender(message), descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            if answer is not None:
                return answer

    async def _readable(self) -> None:
        waiter = self._loop.create_future()

        def look() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self._loop.add_reader(self._connection, look)
        try:
            await waiter
        finally:
            if not self._closed:
                self._loop.remove_reader(self._connection)

    def _take(self, said: sharing.FromLender, descriptors: list[int]) -> memoryview | None:
        match said:
            case Dropped(slot=slot):
                self._slots.pop(slot, None)  # unmapped when the last view of it goes
                return None
            case Lent(slot=slot, start=start, end=end, size=size):
                self.lent = said
                if size:
                    self._map(slot, size, descriptors)
                memory = self._slots.get(slot)
                if memory is None or slot in self._out or not 0 <= start <= end <= len(memory):
                    raise MessageError(f"it lends bytes {start} to {end} of slot {slot}, which it cannot")
                return self._lend(slot, memory)[start:end]

    def _map(self, slot: int, size: int, descriptors: list[int]) -> None:
        if len(descriptors) != 1 or slot in self._slots or len(self._slots) >= _MOST_SLOTS:
            raise MessageError(f"it lends a slot {slot} without memory, twice, or after {_MOST_SLOTS} others")
        if not sharing.is_sealed(descriptors[0]) or os.fstat(descriptors[0]).st_size != size:
            raise MessageError("it lends memory that could shrink, or is not as large as it says")
        try:
            self._slots[slot] = mmap.mmap(
                descriptors[0], size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        except OSError as error:
            self.maps = False
            raise BrokenChannelError(f"the server's shared memory cannot be mapped: {error}") from error

    def _lend(self, slot: int, memory: mmap.mmap) -> memoryview:
        """Return a view of a slot that is given back when it, and every view made of it, is gone."""
        whole: NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        loan = _Loan(whole, self._dropped.append)
        loan.slot, loan.memory = slot, memory
        self._out[slot] = loan
        if self._looking is None:
            self._look()
        return memoryview(whole)  # type: ignore[arg-type]  # numpy's stubs do not say that an array is a buffer

    def _look(self) -> None:
        """Take back what the trainer dropped, and again soon, as long as anything is out."""
        self._take_back()
        self._looking = self._loop.call_later(_LOOK, self._look) if self._out else None

    def _take_back(self) -> None:
        """Forget what the trainer wrote to what it dropped, and tell the server."""
        while self._dropped:
            loan = self._dropped.popleft()
            assert isinstance(loan, _Loan)
            del self._out[loan.slot]
            if has_own_pages(loan.memory):  # else what is mapped stays so: to fault it in again costs more than to look
                loan.memory.madvise(mmap.MADV_DONTNEED)
            self._unsaid.append(loan.slot)
        if self._unsaid:
            self._say()

    def _say(self) -> None:
        """Tell the server what is free again."""
        if self._closed:
            return
        try:
            while self._unsaid:
                self._connection.send(encode(Release(slot=self._unsaid[0])))
                self._unsaid.popleft()
            self._loop.remove_writer(self._connection)
        except BlockingIOError:
            self._loop.add_writer(self._connection, self._say)
        except OSError:  # reading says so too
            self._unsaid.clear()

    def close(self) -> None:
        """End the connection; what the trainer still holds becomes its own first. Idempotent."""
        if not self._closed:
            self.make_own()
            self._closed = True
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
            self._connection.close()
            self._let_go()

    def make_own(self) -> None:
        """Copy every page that is borrowed now, so that no later answer shows in it."""
        for loan in list(self._out.values()):
            loan.memory.madvise(_MADV_POPULATE_WRITE)

    def forget(self) -> None:
        """Let go, in a child, of what is its parent's."""
        self._closed = True
        self._connection.close()
        self._let_go()

    def _let_go(self) -> None:
        """Leave the memory to the views of it, which may outlive this."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._slots.clear()
        self._out.clear()
        self._dropped.clear()


_all: weakref.WeakSet[Borrowing] = weakref.WeakSet()


def _before_fork() -> None:
    for borrowing in list(_all):
        borrowing.make_own()


def _after_fork() -> None:
    for borrowing in list(_all):
        borrowing.forget()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
