"""Conformance: who is gone, who closed it, and who sends too much."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import psutil
import pytest

from shardfeed_wire.endpoint import parse_endpoint
from shardfeed_wire.errors import BrokenChannelError, ClosedChannelError, EndpointError
from shardfeed_wire.transport import Limits, Listener
from tests.wire.conformance_arena import (
    DEADLINE,
    LIMITS,
    MIB,
    Arena,
    as_bytes,
    background,
    greet,
    greet_again,
    raises,
    soon,
)

_PROTOCOLS = {"sctp": socket.IPPROTO_SCTP}
"""The sockets that hold a port of a scheme; TCP's, unless it is here."""

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
    assert not listener.gone(peer)
    channel.close()
    await raises(BrokenChannelError, lambda: listener.send(peer, [b"x"]))


async def no_two_peers_have_one_identity_whatever_listener_they_came_to(arena: Arena) -> None:
    peers = set()
    for listener in (arena.listen(), arena.listen()):
        for _ in range(2):
            peers.add(await greet(await arena.connect(listener.url), listener))
    assert len(peers) == 4


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
    with pytest.raises(EndpointError, match=r"cannot listen on .*(choose another port|another process listens there)"):
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
