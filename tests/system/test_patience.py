"""A server waits for a peer for a while and no longer: half messages, silence, and answers that are not read."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from shardfeed import RemoteDataset
from shardfeed.inquiry import ask_server
from shardfeed_server.conduct import USUAL_PATIENCE
from shardfeed_server.service import REQUEST_LIMITS
from shardfeed_wire.messages import PROTOCOL_VERSION, Get, Hello
from tests.photographs import Photographs
from tests.system import hostile_peers
from tests.system.loaders import wait_until, write_photographs

pytestmark = pytest.mark.xdist_group("patience")  # one process starts the server of all

ROOT = Path(__file__).parents[2]
SAMPLES = 64
MIB = 1 << 20
SILENT, UNREAD = 1.5, 2.0
HELLO = hostile_peers.framed(Hello(version=PROTOCOL_VERSION, job="patience"))
ENOUGH = 40.0
"""Seconds in which all of this comes true even on a machine that has other things to do."""


class Server:
    """The server, its address, and what it logged."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        assert process.stdout is not None
        self.process, self.url = process, process.stdout.readline().strip()
        self._log = log

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        return self._log.read_text()

    def serves(self) -> None:
        with RemoteDataset(self.url, batch_size=16, shared_memory=False) as dataset:
            assert sum(len(labels) for _, labels in dataset) == SAMPLES


@pytest.fixture(scope="module")
def server(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("patience")
    shards = write_photographs(folder, photographs[:SAMPLES], count=1)
    log = folder / "log"
    command = [sys.executable, "-m", "tests.system.impatient_server", str(SILENT), str(UNREAD), *map(str, shards)]
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
        ) as process,
    ):
        try:
            yield Server(process, log)
        finally:
            process.communicate()  # closes its standard input
    assert process.returncode == 0


def until_cut_off(peer: socket.socket) -> float:
    """Read until the other side hangs up, and give the seconds that it took."""
    began = time.monotonic()
    peer.settimeout(ENOUGH)
    with contextlib.suppress(ConnectionError):
        while peer.recv(1 << 16):
            pass
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("before", "half"),
    [
        (HELLO, hostile_peers.frame(bytes(300_000), more=False)[:200_000]),
        (HELLO, hostile_peers.frame(bytes(300_000), more=True)),
        (b"", hostile_peers.frame(bytes(300_000), more=False)[:200_000]),
        (b"", hostile_peers.frame(bytes(300_000), more=True)),
    ],
    ids=["half a frame", "half of a message's frames", "half a frame at first", "half of its frames at first"],
)
def test_half_a_message_and_no_more_ends_the_connection_in_time_and_others_are_served(
    server: Server, before: bytes, half: bytes
) -> None:
    with hostile_peers.connect(server.port) as peer:
        peer.sendall(before + half)
        server.serves()
        took = until_cut_off(peer)
        assert took < ENOUGH
    if before:  # else it is one that has said nothing
        wait_until(lambda: "half a message for too long" in server.log, what="a line in the log")
    server.serves()


def test_half_messages_of_many_cost_what_they_sent_while_they_wait_and_nothing_when_they_are_gone(
    server: Server,
) -> None:
    process = psutil.Process(server.process.pid)
    server.serves()
    before = process.memory_full_info().uss
    count, frames = 20, 3
    with contextlib.ExitStack() as stays:
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(hostile_peers.connect(server.port)) for _ in range(count)]
            for peer in peers:
                peer.sendall(HELLO + hostile_peers.frame(bytes(MIB), more=True) * frames)
            assert process.memory_full_info().uss - before < (count * (frames + 1) + 50) * MIB
            # Who comes now and stays has its memory above theirs, which is to go nevertheless.
            for _ in range(3):
                stays.enter_context(hostile_peers.connect(server.port)).sendall(HELLO)
            server.serves()
            for number, peer in enumerate(peers):
                if number % 2:
                    peer.close()  # in the middle of its message
                else:
                    until_cut_off(peer)
        wait_until(lambda: process.memory_full_info().uss - before < 50 * MIB, ENOUGH, "the memory was given back")
    server.serves()


def test_who_connects_and_says_nothing_is_cut_off_in_time(server: Server) -> None:
    with hostile_peers.connect(server.port) as peer:
        assert SILENT / 2 < until_cut_off(peer) < ENOUGH
    server.serves()


def test_who_has_said_something_may_be_silent_for_as_long_as_it_likes(server: Server) -> None:
    with hostile_peers.connect(server.port) as peer:
        peer.settimeout(2 * SILENT)
        peer.sendall(HELLO)
        with pytest.raises(TimeoutError):  # it is answered, and then nothing comes
            while peer.recv(1 << 16):
                pass
        peer.settimeout(ENOUGH)
        peer.sendall(HELLO)
        assert peer.recv(1 << 16)


def test_who_does_not_read_its_answers_is_cut_off_in_time_and_what_was_kept_is_free(server: Server) -> None:
    stream = ask_server(server.url, timeout=20).streams[0]
    get = Get(request=0, stream=stream.name, data=stream.data, recipe=stream.recipe, seed=0, epoch=0)
    rows = np.zeros(64, np.uint32), np.zeros(64, np.uint16)
    with hostile_peers.connect(server.port, buffer=4096) as peer:
        peer.sendall(HELLO + hostile_peers.framed(get, *rows) * 60)  # some 47 MB of answers
        wait_until(lambda: "it does not read its answers" in server.log, ENOUGH, "a line in the log")
        until_cut_off(peer)
    server.serves()


def test_the_usual_patience_is_what_the_documentation_says() -> None:
    assert (USUAL_PATIENCE.silent, USUAL_PATIENCE.unread) == (30.0, 60.0)
    assert REQUEST_LIMITS.silent_seconds == 30.0
    page = (ROOT / "docs" / "security.md").read_text()
    assert "30 s after its first bytes the connection ends" in page
    assert "and 30 s for the first message" in page
    assert "After 60 s, and a second for each MB, the connection ends" in page
