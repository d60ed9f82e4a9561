"""Conformance: what arrives, and who is held up by whom."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import psutil

from shardfeed_wire.transport import Channel, Limits
from tests.wire.conformance_arena import (
    LIMITS,
    MIB,
    PATIENCE,
    Arena,
    as_bytes,
    background,
    greet,
    settled,
    soon,
)

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


async def a_message_of_300_mb_arrives(arena: Arena) -> None:
    limits = Limits(frame_bytes=300 * 1000 * 1000, frames=64, messages=16)
    listener, channel, peer = await arena.pair(limits)
    chunk = bytearray(300 * 1000 * 1000)
    chunk[-5:] = b"ended"
    async with background(listener.send(peer, [chunk, b"end"])):
        received = await soon(channel.receive(), PATIENCE)
    assert [memoryview(part).nbytes for part in received] == [len(chunk), 3]
    assert memoryview(received[0]) == chunk


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


async def a_cancelled_send_arrives_whole_or_not_at_all(arena: Arena) -> None:
    listener, channel, _ = await arena.pair()
    kept: list[int] = []
    count = 60

    async def send_all() -> None:
        for number in range(count):
            chunks = [b"%d" % number, bytes([number]) * MIB, b"end"]
            try:
                async with asyncio.timeout(None if number % 2 else random.choice([0.0, 0.0005, 0.005])):
                    await channel.send(chunks)
            except TimeoutError:
                continue
            kept.append(number)

    arrived = []
    async with background(send_all()):
        while not arrived or arrived[-1] != count - 1:
            chunks = as_bytes((await soon(listener.receive()))[1])
            number = int(chunks[0])
            assert chunks[1:] == [bytes([number]) * MIB, b"end"]
            arrived.append(number)
    assert arrived == sorted(set(arrived))
    assert set(kept) <= set(arrived)


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
