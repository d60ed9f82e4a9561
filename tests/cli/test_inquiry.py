"""Asking a server what it is: every way in which there is no answer is told apart, and names the endpoint."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shardfeed.inquiry import ask_server
from shardfeed_wire.errors import ConnectError, EndpointError, RefusedError, ShardfeedError, VersionMismatchError
from shardfeed_wire.messages import Hello, Message, Pong, Refused, Welcome, pack, unpack
from shardfeed_wire.transport import Limits, Network

WELCOME = Welcome(version=1, server="reader", nonce="n", workers=2, streams=(), software="tests")


@contextmanager
def answering(path: Path, answer: Callable[[], list[bytes]]) -> Iterator[str]:
    """A server that answers one message with ``answer()``."""
    url, bound, answered = f"ipc://{path}", threading.Event(), threading.Event()

    async def serve() -> None:
        network = Network()
        listener = network.listen(url, Limits(frame_bytes=1 << 20))
        bound.set()
        try:
            peer, chunks = await listener.receive()
            assert isinstance(unpack(chunks)[0], Hello)
            await listener.send(peer, answer())
            await asyncio.to_thread(answered.wait)
        finally:
            await listener.close(1.0)
            network.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert bound.wait(10)
    try:
        yield url
    finally:
        answered.set()
        thread.join()


def test_what_a_server_says_of_itself_is_returned(tmp_path: Path) -> None:
    with answering(tmp_path / "feed", lambda: pack(WELCOME)) as url:
        assert ask_server(url) == WELCOME


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (Refused(request=0, reason="indexing", message="indexing 43 %"), ConnectError, "not ready: indexing 43 %"),
        (Refused(request=0, reason="version_differs", message="1 and 9"), VersionMismatchError, "1 and 9"),
        (Refused(request=0, reason="bad_request", message="no job"), RefusedError, "no job"),
        (Welcome(version=9, server="a", nonce="n", workers=1, streams=()), VersionMismatchError, "version 9"),
        (Pong(number=1, nonce="n"), RefusedError, "not a shardfeed server"),
    ],
)
def test_an_answer_that_is_no_welcome_is_an_error_that_says_why(
    tmp_path: Path, answer: Message, error: type[ShardfeedError], said: str
) -> None:
    with answering(tmp_path / "feed", lambda: pack(answer)) as url, pytest.raises(error, match=said) as raised:
        ask_server(url)
    assert url in str(raised.value)


def test_a_peer_that_speaks_something_else_is_not_a_shardfeed_server(tmp_path: Path) -> None:
    answer = [b"something", b"else"]
    with (
        answering(tmp_path / "feed", lambda: answer) as url,
        pytest.raises(RefusedError, match="not a shardfeed server"),
    ):
        ask_server(url)


def test_nobody_and_a_listener_that_says_nothing_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectError, match=f"{url}: no answer within 0.2 s"):
            ask_server(url, timeout=0.2)
    with pytest.raises(ConnectError, match=f"{url}.*nobody listens.*shardfeed serve"):
        ask_server(url)


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(EndpointError, match="is not a URL"):
        ask_server("127.0.0.1:7880")
