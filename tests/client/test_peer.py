"""What a client loses of what it was lent is asked for anew, and what it holds stays as it is."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import secrets
import socket
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardfeed.peer import Greeting, Peer
from shardfeed_wire import sharing
from shardfeed_wire.errors import ShardfeedError
from shardfeed_wire.messages import Hello, Message, Pong, SharedMemory, Welcome, pack, unpack
from shardfeed_wire.sharing import Lent, encode
from shardfeed_wire.tenbin import encode_chunks
from shardfeed_wire.transport import Limits, Network

SIZE = 1 << 16
TOO_LARGE = 1 << 47  # all of a process's address space


class Heard:
    """Keeps what a peer says of its server."""

    def __init__(self) -> None:
        self.received_: asyncio.Queue[tuple[Message, list[NDArray[Any]]]] = asyncio.Queue()
        self.lost_: asyncio.Queue[ShardfeedError] = asyncio.Queue()

    def welcomed(self, peer: Peer, welcome: Welcome) -> None:
        pass

    def received(self, peer: Peer, message: Message, tensors: list[NDArray[Any]]) -> None:
        self.received_.put_nowait((message, tensors))

    def lost(self, peer: Peer, reason: ShardfeedError) -> None:
        self.lost_.put_nowait(reason)


class Lender:
    """A server that welcomes, and lends what a test says."""

    def __init__(self, network: Network) -> None:
        self.listener = network.listen("tcp://127.0.0.1:0", Limits(frame_bytes=1 << 20, frames=64))
        self.name = f"shardfeed-test-{secrets.token_hex(8)}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(sharing.address(self.name))
        self.socket.listen()
        self.socket.setblocking(False)

    async def welcome(self) -> bytes:
        """Welcome the next who says Hello, and return who it is."""
        client, chunks = await self.listener.receive()
        assert isinstance(unpack(chunks)[0], Hello)
        offer = SharedMemory(socket=self.name, token=bytes(16))
        welcome = Welcome(version=1, server="test", nonce="1", workers=1, streams=(), shared=offer)
        await self.listener.send(client, pack(welcome))
        return client

    async def attached(self) -> socket.socket:
        """Return the connection of the client that comes to borrow."""
        connection, _ = await asyncio.get_running_loop().sock_accept(self.socket)
        await asyncio.get_running_loop().sock_recv(connection, sharing.MESSAGE_BYTES)
        return connection


def lend(connection: socket.socket, descriptor: int, *, end: int, size: int) -> None:
    sharing.seal(descriptor)
    socket.send_fds(connection, [encode(Lent(slot=0, start=0, end=end, size=size))], [descriptor])
    os.close(descriptor)


@contextlib.asynccontextmanager
async def meeting() -> AsyncIterator[tuple[Lender, Heard]]:
    network, heard = Network(), Heard()
    lender = Lender(network)
    greeting = Greeting(job="test", rank=0, software="test", framing="multipart", shared_memory=True)
    running = asyncio.create_task(Peer(lender.listener.url, network, greeting, heard).run())
    try:
        async with asyncio.timeout(50):
            yield lender, heard
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        lender.socket.close()
        await lender.listener.close()
        network.close()


def test_memory_that_cannot_be_mapped_ends_the_connection_and_the_next_one_borrows_nothing() -> None:
    async def check() -> None:
        async with meeting() as (lender, heard):
            await lender.welcome()
            with await lender.attached() as connection:
                descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                os.ftruncate(descriptor, TOO_LARGE)
                lend(connection, descriptor, end=10, size=TOO_LARGE)
                assert "cannot be mapped" in str(await heard.lost_.get())
            client = await lender.welcome()
            await lender.listener.send(client, pack(Pong(number=7, nonce="1")))
            assert (await heard.received_.get())[0] == Pong(number=7, nonce="1")
            with contextlib.suppress(BlockingIOError):
                lender.socket.accept()
                raise AssertionError("it borrows again")

    asyncio.run(check())


def test_what_is_held_stays_as_it_is_where_a_server_lends_no_more_and_writes_to_it() -> None:
    async def check() -> None:
        async with meeting() as (lender, heard):
            await lender.welcome()
            said = bytes(encode_chunks(pack(Pong(number=7, nonce="1"), [np.zeros(SIZE // 2, np.uint8)])))
            with await lender.attached() as connection:
                descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                os.ftruncate(descriptor, SIZE)
                memory = mmap.mmap(descriptor, SIZE)
                memory[: len(said)] = said
                lend(connection, descriptor, end=len(said), size=SIZE)
                _, (held,) = await heard.received_.get()
                connection.shutdown(socket.SHUT_WR)
                assert await asyncio.get_running_loop().sock_recv(connection, sharing.MESSAGE_BYTES) == b""
            memory[:] = b"\xff" * SIZE
            assert not held.any()
            assert heard.lost_.empty()
            memory.close()

    asyncio.run(check())
