"""What a server lends is believed only where it cannot hurt the trainer."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import resource
import select
import socket
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from shardfeed.borrowing import Borrowing, borrow
from shardfeed_wire import sharing
from shardfeed_wire.errors import MessageError
from shardfeed_wire.messages import SharedMemory
from shardfeed_wire.sharing import Dropped, Lent, Release, encode

SIZE = 1 << 16


def memfd(size: int = SIZE, seals: int | None = None, content: bytes = b"") -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.posix_fallocate(descriptor, 0, size)
    os.pwrite(descriptor, content, 0)
    if seals is None:
        sharing.seal(descriptor)
    elif seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.settimeout(20)
    with ours, theirs:
        yield ours, theirs


def say(theirs: socket.socket, message: object, *descriptors: int) -> None:
    socket.send_fds(theirs, [encode(message)], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)


async def refused(ours: socket.socket) -> None:
    borrowing = Borrowing(ours)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(MessageError):
                while True:
                    await borrowing.receive()
    finally:
        borrowing.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: memfd(seals=0),
        lambda: memfd(seals=fcntl.F_SEAL_GROW),
        lambda: memfd(size=2 * SIZE),
        lambda: os.open("/dev/null", os.O_RDWR),
    ],
    ids=["not sealed", "that may shrink", "of another size", "that is none"],
)
def test_memory_is_not_mapped(pair: tuple[socket.socket, socket.socket], make: Callable[[], int]) -> None:
    say(pair[1], Lent(slot=1, start=0, end=10, size=SIZE), make())
    asyncio.run(refused(pair[0]))


@pytest.mark.parametrize(
    "said",
    [
        Lent(slot=1, start=0, end=10),
        Lent(slot=1, start=0, end=10, size=SIZE),
        Lent(slot=0, start=0, end=SIZE + 1),
        Lent(slot=0, start=20, end=10),
        Lent(slot=0, start=-20, end=10),
        Release(slot=0),
        "noise",
    ],
    ids=["no such slot", "no descriptor", "past its end", "end before start", "before it", "a client's words", "noise"],
)
def test_nonsense_is_an_error(pair: tuple[socket.socket, socket.socket], said: object) -> None:
    say(pair[1], Lent(slot=0, start=0, end=10, size=SIZE), memfd())
    say(pair[1], said)
    asyncio.run(refused(pair[0]))


def test_a_slot_that_is_out_cannot_be_lent_again(pair: tuple[socket.socket, socket.socket]) -> None:
    async def check() -> None:
        borrowing = Borrowing(pair[0])
        try:
            say(pair[1], Lent(slot=0, start=0, end=10, size=SIZE), memfd())
            say(pair[1], Lent(slot=0, start=0, end=10))
            held = await borrowing.receive()
            with pytest.raises(MessageError):
                await borrowing.receive()
            assert held == bytes(10)
        finally:
            borrowing.close()

    asyncio.run(check())


def test_a_view_of_a_view_holds_a_slot_and_the_last_one_gives_it_back(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    async def check() -> None:
        borrowing = Borrowing(pair[0])
        say(pair[1], Lent(slot=7, start=1, end=5, size=SIZE), memfd(content=b"answer"))
        view = (await borrowing.receive())[1:]
        assert view == b"swe"
        view[:] = b"own"
        pair[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            pair[1].recv(100)
        say(pair[1], Dropped(slot=7))
        del view
        async with asyncio.timeout(20):
            await asyncio.get_running_loop().run_in_executor(None, select.select, [pair[1]], [], [])
        assert sharing.decode_from_borrower(pair[1].recv(100)) == Release(slot=7)
        pair[1].close()
        assert await borrowing.receive() is None
        borrowing.close()

    asyncio.run(check())


def test_no_python_code_runs_where_a_batch_is_dropped(pair: tuple[socket.socket, socket.socket]) -> None:
    """Else a KeyboardInterrupt that a signal brought just then was lost, for destructors raise nothing."""

    async def check() -> None:
        borrowing = Borrowing(pair[0])
        say(pair[1], Lent(slot=7, start=1, end=5, size=SIZE), memfd())
        view = await borrowing.receive()
        assert view is not None
        batch, called = [torch.from_numpy(np.frombuffer(view, np.uint8))], list[str]()
        del view
        sys.setprofile(lambda frame, event, _: called.append(f"{event} {frame.f_code.co_name}"))
        batch.clear()
        sys.setprofile(None)
        assert [each for each in called if each.startswith("call ")] == []
        async with asyncio.timeout(20):
            await asyncio.get_running_loop().run_in_executor(None, select.select, [pair[1]], [], [])
        assert sharing.decode_from_borrower(pair[1].recv(100)) == Release(slot=7)
        borrowing.close()

    asyncio.run(check())


def test_what_was_written_to_a_batch_is_forgotten_when_its_slot_comes_again(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    async def check() -> None:
        borrowing = Borrowing(pair[0])
        say(pair[1], Lent(slot=0, start=0, end=6, size=SIZE), memfd(content=b"answer"))
        view = await borrowing.receive()
        view[:] = b"edited"
        del view
        say(pair[1], Lent(slot=0, start=0, end=6))
        assert await borrowing.receive() == b"answer"
        borrowing.close()

    asyncio.run(check())


@pytest.mark.parametrize("edited", [False, True])
def test_a_slot_stays_mapped_unless_it_was_written_to(pair: tuple[socket.socket, socket.socket], edited: bool) -> None:
    pages = 512

    async def check() -> None:
        borrowing = Borrowing(pair[0])
        size = pages * mmap.PAGESIZE
        say(pair[1], Lent(slot=0, start=0, end=size, size=size), memfd(size))
        faults = []
        for _ in range(2):
            view = await borrowing.receive()
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            assert not any(view[:: mmap.PAGESIZE])
            faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
            if edited:
                view[-1:] = b"x"
            del view
            say(pair[1], Lent(slot=0, start=0, end=size))
        borrowing.close()
        # The kernel maps 16 pages or so at a fault; a few faults are the interpreter's.
        assert (faults[1] >= pages // 32) == edited

    asyncio.run(check())


def test_an_offer_of_another_machine_is_not_taken_up() -> None:
    async def check() -> None:
        assert borrow(SharedMemory(socket="shardfeed-of-nobody-here", token=bytes(16))) is None

    asyncio.run(check())
