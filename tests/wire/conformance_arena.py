"""What the checks of the conformance suite stand on: a network, endpoints on it, and patience with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from shardfeed_wire.transport import Channel, Limits, Listener, Network

LIMITS = Limits(frame_bytes=128 << 20, frames=64, messages=16)
MIB = 1 << 20
DEADLINE = 20.0
PATIENCE = 100.0
"""For what moves hundreds of megabytes."""

T = TypeVar("T")
Check = Callable[["Arena"], Coroutine[Any, Any, None]]


class Arena:
    """A network, endpoints on it, and what a check has open there."""

    def __init__(self, network: Network, url: Callable[[], str]) -> None:
        self.network, self.url = network, url
        self._open: list[Channel | Listener] = []

    def listen(self, limits: Limits = LIMITS, url: str | None = None) -> Listener:
        listener = self.network.listen(url or self.url(), limits)
        self._open.append(listener)
        return listener

    async def connect(self, url: str, limits: Limits = LIMITS) -> Channel:
        channel = await soon(self.network.connect(url, limits))
        self._open.append(channel)
        return channel

    async def pair(self, limits: Limits = LIMITS) -> tuple[Listener, Channel, bytes]:
        """Return a listener, a channel to it, and the channel's identity at the listener."""
        listener = self.listen(limits)
        channel = await self.connect(listener.url, limits)
        return listener, channel, await greet(channel, listener)

    async def close(self) -> None:
        for opened in self._open:
            closing = opened.close()
            if closing is not None:
                await closing


def run(
    check: Check, url: Callable[[], str], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    """Run one check in an event loop of its own, asyncio's unless said otherwise."""

    async def within() -> None:
        network = Network()
        arena = Arena(network, url)
        try:
            await check(arena)
        finally:
            await arena.close()
            network.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(within())


async def soon(awaitable: Awaitable[T], seconds: float = DEADLINE) -> T:
    """Return the result, which must be there before the deadline."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def greet(channel: Channel, listener: Listener) -> bytes:
    await soon(channel.send([b"hello"]))
    peer, chunks = await soon(listener.receive())
    assert as_bytes(chunks) == [b"hello"]
    return peer


def as_bytes(chunks: list[Any]) -> list[bytes]:
    return [bytes(chunk) for chunk in chunks]


@contextlib.asynccontextmanager
async def background(coroutine: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settled(count: Callable[[], int], quiet: float = 1.0) -> int:
    """Return a count that has not changed for ``quiet`` seconds."""
    async with asyncio.timeout(DEADLINE):
        while True:
            before = count()
            await asyncio.sleep(quiet)
            if count() == before:
                return before


async def raises(expected: type[Exception], coroutine: Callable[[], Awaitable[Any]]) -> None:
    """Repeat until it raises what is expected; the deadline is the end."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await coroutine()
            except expected:
                return
            await asyncio.sleep(0.01)


async def greet_again(channel: Channel, listener: Listener, peer: bytes) -> None:
    """See that both still talk; what others sent before is passed over."""
    await soon(channel.send([b"still here"]))
    async with asyncio.timeout(DEADLINE):
        while (await listener.receive())[0] != peer:
            pass
    await soon(listener.send(peer, [b"so am I"]))
    assert as_bytes(await soon(channel.receive())) == [b"so am I"]
