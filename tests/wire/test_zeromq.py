"""ZeroMQ over TCP and Unix sockets holds to the contracts of a transport, and says what else listens at an endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import zmq

from shardfeed_wire.crowd import most_connections
from shardfeed_wire.endpoint import parse_endpoint
from shardfeed_wire.errors import BrokenChannelError, EndpointError
from shardfeed_wire.transport import Limits, Network
from tests.system.loaders import wait_until
from tests.wire.conformance import CHECKS, Check, run
from tests.wire.conformance_arena import DEADLINE, soon

LIMITS = Limits(frame_bytes=1 << 20)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture(params=["tcp", "ipc"])
def url(request: pytest.FixtureRequest, folder: Path) -> Callable[[], str]:
    numbers = count()
    return lambda: "tcp://127.0.0.1:0" if request.param == "tcp" else f"ipc://{folder}/feed{next(numbers)}"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Check, url: Callable[[], str]) -> None:
    run(check, url)


def in_network(act: Callable[[Network], Awaitable[None]]) -> None:
    async def within() -> None:
        network = Network()
        try:
            await act(network)
        finally:
            network.close()

    asyncio.run(within())


@pytest.mark.parametrize(
    ("first_words", "stays"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH\r\n", False),
        (b"", False),
        (b"\xff" * 200, False),
        (b"\xff" * 200, True),
    ],
    ids=["HTTP", "SSH", "nothing", "noise", "noise that stays"],
)
def test_what_does_not_speak_zeromq_is_an_error(first_words: bytes, stays: bool) -> None:
    stayed: list[asyncio.StreamWriter] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first_words)
        if stays:
            stayed.append(writer)
        else:
            writer.close()

    async def act(network: Network) -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            with pytest.raises(BrokenChannelError, match=rf"tcp://127.0.0.1:{port}: what listens there "):
                await soon(network.connect(f"tcp://127.0.0.1:{port}", LIMITS))
        finally:
            server.close()
            for writer in stayed:
                writer.close()

    in_network(act)


def test_to_connect_to_what_never_says_a_word_waits_and_can_be_cancelled() -> None:
    async def act(network: Network) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await network.connect(f"tcp://127.0.0.1:{silent.getsockname()[1]}", LIMITS)

    in_network(act)


def test_another_kind_of_zeromq_socket_is_an_error() -> None:
    async def act(network: Network) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as other:
            port = other.bind_to_random_port("tcp://127.0.0.1")
            with pytest.raises(BrokenChannelError, match="what listens there"):
                await soon(network.connect(f"tcp://127.0.0.1:{port}", LIMITS))

    in_network(act)


@pytest.mark.parametrize(("bound", "host"), [("[::1]", "[::1]"), ("[::]", "127.0.0.1"), ("[::]", "[::1]")])
def test_a_peer_over_ipv6_is_known_by_its_connection(bound: str, host: str) -> None:
    async def act(network: Network) -> None:
        listener = network.listen(f"tcp://{bound}:0", LIMITS)
        channel = await soon(network.connect(f"tcp://{host}:{parse_endpoint(listener.url).port}", LIMITS))
        try:
            await soon(channel.send([b"hello"]))
            peer, _ = await soon(listener.receive())
            assert not listener.gone(peer)
            listener.drop(peer, "a test says so")
            with pytest.raises(BrokenChannelError):
                await soon(channel.receive())
        finally:
            channel.close()
            await listener.close()

    in_network(act)


def test_strangers_at_a_listener_disturb_nobody() -> None:
    async def act(network: Network) -> None:
        listener = network.listen("tcp://127.0.0.1:0", LIMITS)
        channel = None
        try:
            port = int(listener.url.rpartition(":")[2])
            for words in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000, b"", b"\0" * 64):
                stranger = socket.create_connection(("127.0.0.1", port), DEADLINE)
                stranger.sendall(words)
                stranger.close()
            channel = await soon(network.connect(listener.url, LIMITS))
            await soon(channel.send([b"hello"]))
            assert bytes((await soon(listener.receive()))[1][0]) == b"hello"
        finally:
            if channel is not None:
                channel.close()
            await listener.close()

    in_network(act)


def test_a_socket_that_a_killed_server_left_is_taken_over_and_a_living_one_is_not(folder: Path) -> None:
    path = folder / "feed"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def act(network: Network) -> None:
        listener = network.listen(f"ipc://{path}", LIMITS)
        try:
            with pytest.raises(EndpointError, match="another process listens there"):
                network.listen(f"ipc://{path}", LIMITS)
        finally:
            await listener.close()

    in_network(act)


def test_a_unix_socket_is_closed_to_other_users_even_where_the_umask_is_0(folder: Path) -> None:
    async def act(network: Network) -> None:
        listener = network.listen(f"ipc://{folder}/feed", LIMITS)
        try:
            assert (folder / "feed").stat().st_mode & 0o777 == 0o770
            assert os.umask(0) == 0, "the umask is as it was"
        finally:
            await listener.close()

    before = os.umask(0)
    try:
        in_network(act)
    finally:
        os.umask(before)


def test_connections_that_say_nothing_are_bounded_over_all_listeners_together() -> None:
    async def act(network: Network) -> None:
        listeners = [network.listen("tcp://127.0.0.1:0", LIMITS) for _ in range(2)]
        silent: list[socket.socket] = []
        channel = None
        try:
            for listener in listeners:
                port = int(listener.url.rpartition(":")[2])
                silent.extend(socket.create_connection(("127.0.0.1", port), DEADLINE) for _ in range(60))
            most = most_connections()
            assert most < 100
            await soon(asyncio.to_thread(wait_until, lambda: sum(map(is_open, silent)) <= most))
            for listener in listeners:  # each has room for who says something
                channel = await soon(network.connect(listener.url, LIMITS))
                await soon(channel.send([b"hello"]))
                assert bytes((await soon(listener.receive()))[1][0]) == b"hello"
                channel.close()
            assert sum(map(is_open, silent)) > most - 10, "no more of them had to go"
        finally:
            for each in silent:
                each.close()
            for listener in listeners:
                await listener.close()

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, limit[1]))
    try:
        in_network(act)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@contextlib.contextmanager
def sockets(free: int) -> Iterator[None]:
    """ZeroMQ makes so many more sockets, as where this process may have no more descriptors.

    A stand-in: in a process that really has none left, ZeroMQ's own thread now and then aborts it.
    """
    made = count()
    make = zmq.Context.socket

    def limited(context: Any, *arguments: Any, **options: Any) -> Any:
        if next(made) >= free:
            raise zmq.ZMQError(errno.EMFILE)
        return make(context, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(zmq.Context, "socket", limited)
        yield


def test_where_no_socket_can_be_made_a_connection_is_broken_and_leaves_nothing_behind() -> None:
    async def act(network: Network) -> None:
        listener = network.listen("tcp://127.0.0.1:0", LIMITS)
        (await soon(network.connect(listener.url, LIMITS))).close()
        for free in (0, 1):  # the connection's own, and its monitor
            with sockets(free), pytest.raises(BrokenChannelError, match="no socket can be made"):
                await soon(network.connect(listener.url, LIMITS))
        with sockets(2):
            (await soon(network.connect(listener.url, LIMITS))).close()
        with sockets(0), pytest.raises(EndpointError, match="cannot listen on"):
            network.listen("tcp://127.0.0.1:0", LIMITS)
        with sockets(0):
            await listener.close()

    in_network(act)


def is_open(peer: socket.socket) -> bool:
    """Read what there is, and say whether the other side has not hung up."""
    peer.setblocking(False)
    try:
        while peer.recv(1000):
            pass
        return False
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_a_file_that_is_no_socket_is_never_removed(folder: Path) -> None:
    path = folder / "precious"
    path.write_text("data")

    async def act(network: Network) -> None:
        with pytest.raises(EndpointError, match="is not a socket"):
            network.listen(f"ipc://{path}", LIMITS)

    in_network(act)
    assert path.read_text() == "data"


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    async def act(network: Network) -> None:
        with pytest.raises(EndpointError, match=r"cannot listen on tcp://192\.0\.2\.1:1"):
            network.listen("tcp://192.0.2.1:1", LIMITS)

    in_network(act)
