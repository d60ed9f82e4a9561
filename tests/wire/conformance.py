"""What every transport must hold to: one suite of checks, written against the contracts in `shardfeed_wire.transport`.

To hold a transport of your own to them, register it and run each check of `CHECKS` with an `Arena` whose
``url`` gives an endpoint that can be bound and that no other check uses::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conformance(check):
        run(check, lambda: "carrier://127.0.0.1:0")

Checks use real connections and deadlines; none sleeps and hopes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import psutil
import pytest

from shardfeed_wire.endpoint import parse_endpoint
from shardfeed_wire.errors import BrokenChannelError, ClosedChannelError, EndpointError
from shardfeed_wire.transport import Channel, Limits, Listener, Network

LIMITS = Limits(frame_bytes=128 << 20, frames=64, messages=16)
MIB = 1 << 20
DEADLINE = 20.0
_PROTOCOLS = {"sctp": socket.IPPROTO_SCTP}

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


# ------------------------------------------------------------------------------------- what arrives


async def messages_arrive_whole_and_in_order_both_ways(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    chance = random.Random(0)
    sent = [[chance.randbytes(chance.choice([0, 1, 63, 4096, 70_000])) for _ in range(1 + n % 7)] for n in range(300)]

    async def send_all(send: Callable[[list[bytes]], Awaitable[None]]) -> None:
        for chunks in sent:
            await send(chunks)

    async with background(send_all(channel.send)), background(send_all(lambda c: listener.send(peer, c))):
        for chunks in sent:
            assert as_bytes(await soon(channel.receive())) == chunks
            identity, received = await soon(listener.receive())
            assert identity == peer
            assert as_bytes(received) == chunks


async def messages_of_any_size_arrive(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    for size in (0, 1, 63, 64, 65_535, 65_536, MIB, 64 * MIB):
        chunks = [os.urandom(min(size, 1000)), bytes(size), b"", b"end"]
        async with background(channel.send(chunks)):
            assert as_bytes((await soon(listener.receive()))[1]) == chunks
        async with background(listener.send(peer, chunks)):
            assert as_bytes(await soon(channel.receive())) == chunks


async def thousands_of_small_messages_arrive(arena: Arena) -> None:
    listener, channel, _ = await arena.pair()
    count = 5_000

    async def echo() -> None:
        for _ in range(count):
            identity, chunks = await listener.receive()
            await listener.send(identity, chunks)

    async def send_all() -> None:
        for number in range(count):
            await channel.send([b"%d" % number])

    async with background(echo()), background(send_all()):
        for number in range(count):
            assert as_bytes(await soon(channel.receive())) == [b"%d" % number]


async def sixty_four_peers_get_their_own_messages(arena: Arena) -> None:
    listener = arena.listen()
    channels = [await arena.connect(listener.url) for _ in range(64)]

    async def echo() -> None:
        while True:
            identity, chunks = await listener.receive()
            await listener.send(identity, chunks)

    async def talk(number: int, channel: Channel) -> None:
        for turn in range(20):
            await channel.send([b"%d %d" % (number, turn)])
            assert as_bytes(await channel.receive()) == [b"%d %d" % (number, turn)]

    async with background(echo()):
        await soon(asyncio.gather(*(talk(number, channel) for number, channel in enumerate(channels))))


async def a_cancelled_receive_loses_nothing(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    count = 400

    async def send_all() -> None:
        for number in range(count):
            await listener.send(peer, [b"%d" % number])
            await channel.send([b"%d" % number])
            await asyncio.sleep(0.001)

    async def receive_all(receive: Callable[[], Awaitable[list[Any]]]) -> list[bytes]:
        received = []
        while len(received) < count:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.choice([0.0, 0.0005, 0.002])):
                    received.append(as_bytes(await receive())[0])
        return received

    async def from_channel() -> list[Any]:
        return await channel.receive()

    async def from_listener() -> list[Any]:
        return (await listener.receive())[1]

    async with background(send_all()):
        for received in await soon(asyncio.gather(receive_all(from_channel), receive_all(from_listener))):
            assert received == [b"%d" % number for number in range(count)]


async def chunks_are_free_again_when_send_returns(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    for size in (10, 100_000, 8 * MIB):
        for send, receive in (
            (channel.send, lambda: listener.receive()),
            (lambda chunks: listener.send(peer, chunks), lambda: channel.receive()),
        ):
            chunk = bytearray(b"a" * size)
            async with background(receive()) as receiving:
                await soon(send([chunk]))
                chunk[:] = b"b" * size
                received = await soon(receiving)
            chunks = received[1] if isinstance(received, tuple) else received
            assert as_bytes(chunks) == [b"a" * size]


# --------------------------------------------------------------------------------------- who is slow


async def a_reader_that_stops_blocks_its_sender_alone_and_memory_is_bounded(arena: Arena) -> None:
    listener, slow, slow_peer = await arena.pair()
    quick = await arena.connect(listener.url)
    quick_peer = await greet(quick, listener)
    chunk = os.urandom(MIB)
    before = psutil.Process().memory_info().rss
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await listener.send(slow_peer, [chunk])
            sent += 1

    async with background(flood()):
        for number in range(100):
            await soon(listener.send(quick_peer, [chunk, b"%d" % number]))
            assert as_bytes(await soon(quick.receive()))[1] == b"%d" % number
        blocked_at = await settled(lambda: sent)
        assert blocked_at <= 4 * LIMITS.messages + 32  # both sides' limits, and what the kernel buffers
        assert psutil.Process().memory_info().rss - before < (4 * LIMITS.messages + 64) * MIB
        for _ in range(blocked_at + 20):  # it goes on where it was
            assert as_bytes(await soon(slow.receive())) == [chunk]


async def a_listener_that_stops_blocks_the_channel_s_send(arena: Arena) -> None:
    listener, channel, _ = await arena.pair()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await channel.send([b"x" * MIB, b"%d" % sent])
            sent += 1

    async with background(flood()):
        blocked_at = await settled(lambda: sent)
        assert blocked_at <= 4 * LIMITS.messages + 32
        for number in range(blocked_at + 5):
            assert as_bytes((await soon(listener.receive()))[1])[1] == b"%d" % number


async def a_channel_receives_while_its_send_is_blocked(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await channel.send([b"x" * MIB])
            sent += 1

    async with background(flood()):
        await settled(lambda: sent)
        for number in range(100):
            async with background(channel.receive()) as receiving:
                await asyncio.sleep(0)  # it waits before the message is there
                await soon(listener.send(peer, [b"%d" % number]))
                assert as_bytes(await soon(receiving)) == [b"%d" % number]


# ----------------------------------------------------------------------------------------- who is gone


async def a_channel_says_that_the_listener_is_gone_after_what_arrived(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    for number in range(3):
        await soon(listener.send(peer, [b"%d" % number]))
    assert as_bytes(await soon(channel.receive())) == [b"0"]
    await listener.close(linger=5.0)
    assert as_bytes(await soon(channel.receive())) == [b"1"]
    assert as_bytes(await soon(channel.receive())) == [b"2"]
    for _ in range(2):  # once broken it stays so
        with pytest.raises(BrokenChannelError):
            await soon(channel.receive())
        with pytest.raises(BrokenChannelError):
            await soon(channel.send([b"x"]))


async def a_receive_under_way_ends_when_the_listener_goes(arena: Arena) -> None:
    listener, channel, _ = await arena.pair()
    async with background(channel.receive()) as receiving:
        await asyncio.sleep(0)
        await listener.close()
        with pytest.raises(BrokenChannelError):
            await soon(receiving)


async def a_send_under_way_ends_when_the_listener_goes(arena: Arena) -> None:
    listener, channel, _ = await arena.pair()

    async def flood() -> None:
        while True:
            await channel.send([bytes(MIB)])

    async with background(flood()) as flooding:
        await asyncio.wait([flooding], timeout=0.2)
        await listener.close()
        with pytest.raises(BrokenChannelError):
            await soon(flooding)


async def a_listener_says_that_a_channel_is_gone(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    channel.close()
    await raises(BrokenChannelError, lambda: listener.send(peer, [b"x"]))


async def a_listener_s_send_under_way_ends_when_the_channel_goes(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()

    async def flood() -> None:
        while True:
            await listener.send(peer, [bytes(MIB)])

    async with background(flood()) as flooding:
        await asyncio.wait([flooding], timeout=0.2)
        channel.close()
        with pytest.raises(BrokenChannelError):
            await soon(flooding)


async def other_peers_go_on_when_one_goes_in_the_middle_of_a_message(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    other = await arena.connect(listener.url)
    other_peer = await greet(other, listener)
    async with background(channel.send([bytes(100 * MIB)])):
        await asyncio.sleep(0)
        channel.close()
    await greet_again(other, listener, other_peer)
    await raises(BrokenChannelError, lambda: listener.send(peer, [b"x"]))


async def greet_again(channel: Channel, listener: Listener, peer: bytes) -> None:
    """See that both still talk; what others sent before is passed over."""
    await soon(channel.send([b"still here"]))
    async with asyncio.timeout(DEADLINE):
        while (await listener.receive())[0] != peer:
            pass
    await soon(listener.send(peer, [b"so am I"]))
    assert as_bytes(await soon(channel.receive())) == [b"so am I"]


async def a_new_channel_reaches_a_listener_that_came_back(arena: Arena) -> None:
    listener, channel, _ = await arena.pair()
    url = listener.url
    await listener.close()
    with pytest.raises(BrokenChannelError):
        await soon(channel.receive())
    again: list[Listener] = []

    async def listen() -> None:
        again.append(arena.listen(url=url))

    async with asyncio.timeout(DEADLINE):
        while not again:
            try:
                await listen()
            except EndpointError:  # the address is free again in a moment
                await asyncio.sleep(0.05)
    fresh = await arena.connect(url)
    await greet(fresh, again[0])
    with pytest.raises(BrokenChannelError):
        await soon(channel.receive())


async def to_connect_where_nobody_listens_is_an_error(arena: Arena) -> None:
    listener = arena.listen()
    url = listener.url
    await listener.close()

    async def connect() -> None:
        (await arena.network.connect(url, LIMITS)).close()

    async with taken_by_nobody(url):
        await raises(BrokenChannelError, connect)  # ZeroMQ's thread may answer for a moment after the close
        for _ in range(3):
            with pytest.raises(BrokenChannelError) as caught:
                await soon(connect())
            assert url in str(caught.value)


@contextlib.asynccontextmanager
async def taken_by_nobody(url: str) -> AsyncIterator[None]:
    """Hold a port without listening, so that no other process of the test run gets it meanwhile.

    A transport may let go of the port a while after its listener was closed: ZeroMQ's thread does.
    """
    endpoint = parse_endpoint(url)
    protocol = _PROTOCOLS.get(endpoint.scheme, socket.IPPROTO_TCP)
    with socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET, proto=protocol) as holder:
        if endpoint.port:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            async with asyncio.timeout(DEADLINE):
                while True:
                    try:
                        holder.bind((endpoint.host, endpoint.port))
                        break
                    except OSError as error:
                        if error.errno != errno.EADDRINUSE:
                            raise
                    await asyncio.sleep(0.01)
        yield


async def an_endpoint_in_use_cannot_be_bound_again(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    with pytest.raises(EndpointError, match="cannot listen on"):
        arena.listen(url=listener.url)
    await greet_again(channel, listener, peer)


# -------------------------------------------------------------------------------------- who closed it


async def what_is_used_after_its_close_says_so(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    channel.close()
    channel.close()
    with pytest.raises(ClosedChannelError):
        await soon(channel.send([b"x"]))
    with pytest.raises(ClosedChannelError):
        await soon(channel.receive())
    await listener.close()
    await listener.close()
    with pytest.raises(ClosedChannelError):
        await soon(listener.receive())
    with pytest.raises(ClosedChannelError):
        await soon(listener.send(peer, [b"x"]))


async def a_close_ends_what_is_under_way(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()

    async def flood(send: Callable[[list[bytes]], Awaitable[None]]) -> None:
        while True:
            await send([bytes(MIB)])

    async with background(flood(channel.send)) as sending, background(channel.receive()) as receiving:
        await asyncio.wait([sending], timeout=0.2)
        channel.close()
        for task in (sending, receiving):
            with pytest.raises(ClosedChannelError):
                await soon(task)
    other = await arena.connect(listener.url)
    await soon(other.send([b"hello"]))

    async def receive_all() -> None:
        while True:  # what the closed channel sent may still come
            await listener.receive()

    async with asyncio.timeout(DEADLINE):
        while (received := await listener.receive())[0] == peer:
            pass
    async with (
        background(flood(lambda chunks: listener.send(received[0], chunks))) as sending,
        background(receive_all()) as receiving,
    ):
        await asyncio.wait([sending], timeout=0.2)
        await listener.close()
        for task in (sending, receiving):
            with pytest.raises(ClosedChannelError):
                await soon(task)


async def a_listener_that_closes_with_patience_sends_what_is_under_way(arena: Arena) -> None:
    listener, channel, peer = await arena.pair()
    chunk = os.urandom(16 * MIB)
    async with background(listener.send(peer, [chunk, b"end"])) as sending:
        await asyncio.sleep(0)
        async with background(channel.receive()) as receiving:
            await listener.close(linger=DEADLINE)
            assert as_bytes(await soon(receiving)) == [chunk, b"end"]
        await asyncio.gather(sending, return_exceptions=True)


async def a_cancelled_connect_leaves_nothing_behind(arena: Arena) -> None:
    listener = arena.listen()
    descriptors = psutil.Process().num_fds()
    for _ in range(20):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await arena.network.connect(listener.url, LIMITS)
    async with asyncio.timeout(DEADLINE):
        while psutil.Process().num_fds() > descriptors + 20:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.05)
    await greet(await arena.connect(listener.url), listener)


# ------------------------------------------------------------------------------------- who sends too much


SMALL = Limits(frame_bytes=MIB, frames=8, messages=16)


async def a_frame_over_the_listener_s_limit_ends_that_channel_alone(arena: Arena) -> None:
    listener = arena.listen(SMALL)
    other = await arena.connect(listener.url)
    other_peer = await greet(other, listener)
    channel = await arena.connect(listener.url)
    await greet(channel, listener)

    async def send_too_much() -> None:
        await channel.send([bytes(2 * MIB)])

    await raises(BrokenChannelError, send_too_much)
    with pytest.raises(BrokenChannelError):
        await soon(channel.receive())
    await greet_again(other, listener, other_peer)


async def a_frame_over_the_channel_s_limit_ends_it(arena: Arena) -> None:
    listener = arena.listen()
    channel = await arena.connect(listener.url, SMALL)
    peer = await greet(channel, listener)
    async with background(listener.send(peer, [bytes(2 * MIB)])):
        with pytest.raises(BrokenChannelError):
            await soon(channel.receive())


async def too_many_frames_for_the_channel_end_it(arena: Arena) -> None:
    listener = arena.listen()
    channel = await arena.connect(listener.url, SMALL)
    peer = await greet(channel, listener)
    await soon(listener.send(peer, [b"x"] * 8))
    assert len(await soon(channel.receive())) == 8
    await soon(listener.send(peer, [b"x"] * 9))
    for _ in range(2):
        with pytest.raises(BrokenChannelError, match="9 frames; 8 are the most"):
            await soon(channel.receive())
    with pytest.raises(BrokenChannelError):
        await soon(channel.send([b"x"]))


async def too_many_frames_for_the_listener_never_arrive(arena: Arena) -> None:
    listener = arena.listen(SMALL)
    channel = await arena.connect(listener.url)
    other = await arena.connect(listener.url)
    await greet(channel, listener)
    await greet(other, listener)
    await soon(channel.send([b"x"] * 9))
    with contextlib.suppress(BrokenChannelError):  # a transport may end the channel for it
        for _ in range(3):
            await soon(channel.send([b"next"]))
    await soon(other.send([b"still here"]))
    async with asyncio.timeout(DEADLINE):
        while (chunks := as_bytes((await listener.receive())[1])) != [b"still here"]:
            assert chunks == [b"next"]


CHECKS: list[Check] = [
    messages_arrive_whole_and_in_order_both_ways,
    messages_of_any_size_arrive,
    thousands_of_small_messages_arrive,
    sixty_four_peers_get_their_own_messages,
    a_cancelled_receive_loses_nothing,
    chunks_are_free_again_when_send_returns,
    a_reader_that_stops_blocks_its_sender_alone_and_memory_is_bounded,
    a_listener_that_stops_blocks_the_channel_s_send,
    a_channel_receives_while_its_send_is_blocked,
    a_channel_says_that_the_listener_is_gone_after_what_arrived,
    a_receive_under_way_ends_when_the_listener_goes,
    a_send_under_way_ends_when_the_listener_goes,
    a_listener_says_that_a_channel_is_gone,
    a_listener_s_send_under_way_ends_when_the_channel_goes,
    other_peers_go_on_when_one_goes_in_the_middle_of_a_message,
    a_new_channel_reaches_a_listener_that_came_back,
    to_connect_where_nobody_listens_is_an_error,
    an_endpoint_in_use_cannot_be_bound_again,
    what_is_used_after_its_close_says_so,
    a_close_ends_what_is_under_way,
    a_listener_that_closes_with_patience_sends_what_is_under_way,
    a_cancelled_connect_leaves_nothing_behind,
    a_frame_over_the_listener_s_limit_ends_that_channel_alone,
    a_frame_over_the_channel_s_limit_ends_it,
    too_many_frames_for_the_channel_end_it,
    too_many_frames_for_the_listener_never_arrive,
]
