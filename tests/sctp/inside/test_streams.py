"""What SCTP promises beside the conformance suite: streams, strangers, small buffers, and memory."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Awaitable, Callable

import psutil
import pytest

from shardfeed_wire.crowd import most_connections
from shardfeed_wire.errors import BrokenChannelError, EndpointError
from shardfeed_wire.sctp_fragments import FIRST, GREETING, HEADER, LAST
from shardfeed_wire.transport import Limits, Network
from tests.system.loaders import wait_until
from tests.wire.conformance_arena import DEADLINE, LIMITS, MIB, Arena, as_bytes, background, greet, run, soon
from tests.wire.conformance_delivery import messages_arrive_whole_and_in_order_both_ways

URL = "sctp://127.0.0.1:0"


def in_arena(act: Callable[[Arena], Awaitable[None]]) -> None:
    async def within(arena: Arena) -> None:
        await act(arena)

    run(within, lambda: URL)


def stranger(port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    opened.settimeout(DEADLINE)
    opened.connect(("127.0.0.1", port))
    return opened


def test_a_small_answer_is_not_held_up_by_a_large_batch() -> None:
    async def act(arena: Arena) -> None:
        listener, channel, peer = await arena.pair()
        large = bytes(40 * MIB)
        async with background(listener.send(peer, [large])) as sending:
            await asyncio.sleep(0)  # it has begun, and fills what the kernel takes
            assert not sending.done()
            for number in range(5):
                await soon(listener.send(peer, [b"%d" % number]))
            for number in range(5):
                assert as_bytes(await soon(channel.receive())) == [b"%d" % number]
            assert memoryview((await soon(channel.receive()))[0]).nbytes == len(large)

    in_arena(act)


def test_a_close_with_patience_after_a_cancelled_send_ends_in_time_and_holds_up_nobody() -> None:
    async def act(arena: Arena) -> None:
        listener = arena.listen()
        with stranger(int(listener.url.rpartition(":")[2])) as never_reads:
            never_reads.send(GREETING)
            never_reads.send(HEADER.pack(FIRST | LAST, 0, 1) + (5).to_bytes(8, "little") + b"hello")
            peer, chunks = await soon(listener.receive())
            assert as_bytes(chunks) == [b"hello"]
            async with background(listener.send(peer, [bytes(60 * MIB)])) as sending:
                await asyncio.wait([sending], timeout=0.5)
                assert not sending.done()
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0.01)
                    turns += 1

            async with background(count()):
                await soon(listener.close(linger=1.0))
            assert turns

    in_arena(act)


def test_large_batches_share_the_way() -> None:
    async def act(arena: Arena) -> None:
        listener, channel, peer = await arena.pair()
        async with background(listener.send(peer, [bytes(40 * MIB), b"first"])):
            await asyncio.sleep(0)
            async with background(listener.send(peer, [bytes(4 * MIB), b"second"])):
                assert as_bytes((await soon(channel.receive()))[1:]) == [b"second"]
                assert as_bytes((await soon(channel.receive()))[1:]) == [b"first"]

    in_arena(act)


def test_with_the_buffers_that_an_ordinary_user_gets_messages_arrive_too() -> None:
    async def act(arena: Arena) -> None:
        listener, channel, peer = await arena.pair()
        chunks = [os.urandom(4 * MIB), b"end"]
        async with background(channel.send(chunks)):
            assert as_bytes((await soon(listener.receive()))[1]) == chunks
        async with background(listener.send(peer, chunks)):
            assert as_bytes(await soon(channel.receive())) == chunks

    os.seteuid(65_534)  # the privilege to exceed net.core.wmem_max goes with it
    try:
        force = 32  # SO_SNDBUFFORCE
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as one,
            pytest.raises(PermissionError),
        ):
            one.setsockopt(socket.SOL_SOCKET, force, 4 << 20)
        in_arena(act)
        run(messages_arrive_whole_and_in_order_both_ways, lambda: URL)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "words",
    [
        [b"GET / HTTP/1.1\r\n\r\n"],
        [GREETING, b"x"],
        [GREETING, b"\xff" * 1000],
        [GREETING, HEADER.pack(FIRST, 0, 65_535)],
        [GREETING, HEADER.pack(FIRST, 0, 1) + (1 << 60).to_bytes(8, "little")],
    ],
    ids=["another protocol", "no header", "noise", "too many frames", "a frame too large"],
)
def test_a_stranger_is_cut_off_and_disturbs_nobody(words: list[bytes]) -> None:
    async def act(arena: Arena) -> None:
        listener, channel, peer = await arena.pair(Limits(frame_bytes=MIB, frames=64))
        with stranger(int(listener.url.rpartition(":")[2])) as other:
            for word in words:
                other.send(word)
            await soon(asyncio.to_thread(until_cut_off, other))
        await soon(listener.send(peer, [b"still here"]))
        assert as_bytes(await soon(channel.receive())) == [b"still here"]

    in_arena(act)


def until_cut_off(other: socket.socket) -> None:
    """Read until the other side ends the association."""
    try:
        while other.recv(1000):
            pass
    except ConnectionResetError:
        pass


def fragment(flags: int, number: int, body: bytes) -> bytes:
    """A fragment of a message of one frame of 10 bytes; ``body`` is what it brings of the frame."""
    table = (10).to_bytes(8, "little") if flags & FIRST else b""
    return HEADER.pack(flags, number if flags & LAST else 0, 1 if flags & FIRST else 0) + table + body


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([GREETING], "it said nothing"),
        ([GREETING, fragment(FIRST, 0, b"half")], "it said nothing"),
        ([GREETING, fragment(FIRST | LAST, 0, b"0123456789"), fragment(FIRST, 0, b"half")], "it sent half a message"),
        (
            [GREETING, fragment(FIRST | LAST, 0, b"0123456789"), fragment(FIRST | LAST, 2, b"0123456789")],
            "it sent half a message",
        ),
    ],
    ids=["nothing", "half of its first message", "half of a later one", "one left out"],
)
def test_who_sends_half_a_message_or_nothing_is_cut_off_in_time_and_who_has_spoken_may_be_silent(
    words: list[bytes], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(arena: Arena) -> None:
        listener, channel, peer = await arena.pair(Limits(frame_bytes=MIB, silent_seconds=1.0))
        with stranger(int(listener.url.rpartition(":")[2])) as other:
            for word in words:
                other.send(word)
            while len(words) > 2 and (await soon(listener.receive()))[0] == peer:
                pass
            await soon(asyncio.to_thread(until_cut_off, other))
        await soon(listener.send(peer, [b"still here"]))
        assert as_bytes(await soon(channel.receive())) == [b"still here"]

    in_arena(act)
    assert f"is cut off: {reason}" in caplog.text


def test_associations_that_say_nothing_do_not_use_up_the_descriptors() -> None:
    async def act(arena: Arena) -> None:
        listener, channel, peer = await arena.pair()
        port = int(listener.url.rpartition(":")[2])
        others = [stranger(port) for _ in range(80)]
        most = most_connections()
        assert most < 80
        ended: set[socket.socket] = set()

        def still_open() -> int:
            # The kernel tells of an end once.
            ended.update(other for other in others if other not in ended and not is_open(other))
            return len(others) - len(ended)

        await soon(asyncio.to_thread(wait_until, lambda: still_open() < most))
        await greet(await arena.connect(listener.url), listener)
        await soon(listener.send(peer, [b"still here"]))
        assert as_bytes(await soon(channel.receive())) == [b"still here"]
        assert still_open() > most - 10
        for other in others:
            other.close()

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, limit[1]))
    try:
        in_arena(act)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def is_open(other: socket.socket) -> bool:
    """Read what there is, and say whether the other side has not ended the association."""
    other.setblocking(False)
    try:
        while other.recv(1000):
            pass
        return False
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_half_a_message_from_thousands_of_names_costs_what_was_sent_and_no_more() -> None:
    async def act(arena: Arena) -> None:
        listener = arena.listen(Limits(frame_bytes=1 << 40, frames=4096))
        before = psutil.Process().memory_info().rss
        others = [stranger(int(listener.url.rpartition(":")[2])) for _ in range(20)]
        sizes = (1 << 39).to_bytes(8, "little") * 4096
        for other in others:
            other.send(GREETING)
            other.send(HEADER.pack(FIRST, 0, 4096) + sizes)
        await greet(await arena.connect(listener.url), listener)
        assert psutil.Process().memory_info().rss - before < 64 * MIB
        for other in others:
            other.close()

    in_arena(act)


def test_to_connect_to_what_speaks_something_else_is_an_error() -> None:
    async def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            url = f"sctp://127.0.0.1:{other.getsockname()[1]}"

            def answer() -> None:
                client, _ = other.accept()
                client.send(b"220 mail.example.org ESMTP")
                until_cut_off(client)
                client.close()

            network = Network()
            async with background(asyncio.to_thread(answer)):
                with pytest.raises(BrokenChannelError, match=f"{url}: what is there does not speak"):
                    await soon(network.connect(url, LIMITS))
            network.close()

    asyncio.run(act())


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    async def act(arena: Arena) -> None:
        for url in ("sctp://192.0.2.1:0", "sctp://127.0.0.1,192.0.2.1:0", "sctp://no-such-name.invalid:0"):
            with pytest.raises(EndpointError, match=f"cannot listen on {url}"):
                arena.listen(url=url)

    in_arena(act)


def test_names_and_ipv6_addresses_are_endpoints_too() -> None:
    async def act(arena: Arena) -> None:
        for bound, connected in (("[::1]", "[::1]"), ("127.0.0.1", "localhost"), ("127.0.0.1,127.0.0.2", "127.0.0.2")):
            listener = arena.listen(url=f"sctp://{bound}:0")
            port = listener.url.rpartition(":")[2]
            assert listener.url == f"sctp://{bound}:{port}"
            await greet(await arena.connect(f"sctp://{connected}:{port}"), listener)

    in_arena(act)
