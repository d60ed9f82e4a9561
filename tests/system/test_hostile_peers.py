"""Peers that mean harm are cut off or refused, cost little memory, and others are served nevertheless."""

from __future__ import annotations

import resource
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
from shardfeed_wire.messages import PROTOCOL_VERSION, Get, Hello, Refused, Welcome, pack, unpack
from tests.photographs import Photographs
from tests.system import hostile_peers
from tests.system.loaders import Loader, wait_until, write_photographs

pytestmark = pytest.mark.xdist_group("hostile-peers")  # one process starts the server of all

SAMPLES = 400
MIB = 1 << 20
SEND_BYTES = 64 * MIB


@pytest.fixture(scope="module")
def shards(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photographs(tmp_path_factory.mktemp("hostile"), photographs[:SAMPLES], count=2)


@pytest.fixture(scope="module")
def server(shards: list[Path]) -> Iterator[Loader]:
    options = ("--resize", "224x224", "--workers", "1", "--send-bytes", str(SEND_BYTES))
    with Loader.of(shards, *options) as loader:
        yield loader


@pytest.fixture
def port(server: Loader) -> int:
    return int(server.url.rpartition(":")[2])


def memory(server: Loader) -> int:
    """Bytes of the front: what is its own, and not memory that it shares with workers."""
    return psutil.Process(server.process.pid).memory_full_info().uss


def still_serves(server: Loader) -> Welcome:
    return ask_server(server.url, timeout=20)


@pytest.mark.parametrize("size", [MIB, 1])
def test_endless_frames_of_one_message_cost_bounded_memory_and_the_connection(
    server: Loader, port: int, size: int
) -> None:
    before = memory(server)
    sent = hostile_peers.endless_frames(port, size)
    assert sent < hostile_peers.MOST_BYTES / 2, "it was not cut off"
    assert memory(server) - before < 1024 * MIB
    wait_until(lambda: "bytes without a whole message" in server.output, what="a line in the log")
    still_serves(server)


def test_who_sends_what_is_no_message_is_cut_off(server: Loader, port: int) -> None:
    assert hostile_peers.garbage(port) < 100 * MIB
    wait_until(lambda: "no message of the protocol" in server.output, what="a line in the log")
    still_serves(server)


@pytest.mark.parametrize("read", [True, False])
def test_thousands_of_hellos_end_the_connection_and_cost_little_memory(server: Loader, port: int, read: bool) -> None:
    before = memory(server)
    assert hostile_peers.hellos(port, read) < 100 * MIB
    assert memory(server) - before < 200 * MIB
    # Who reads nothing may be cut off for that, where the replies to it are too many before its messages are.
    reasons = ["it sends more than a client does", *([] if read else ["it does not read what it asked for"])]
    wait_until(lambda: any(reason in server.output for reason in reasons), what="a line in the log")
    still_serves(server)


def say(peer: socket.socket, data: bytes) -> object:
    """Send a message and give the answer's control message, or None where the other side hangs up."""
    peer.sendall(data)
    chunks: list[bytes] = []
    while True:
        head = receive(peer, 2)
        if head is None:
            return None
        length = head[1]
        if head[0] & 2:
            rest = receive(peer, 7)
            assert rest is not None
            length = int.from_bytes(head[1:] + rest, "big")
        data = receive(peer, length) or b""
        if head[0] & 4:
            continue  # ZeroMQ's own
        chunks.append(data)
        if not head[0] & 1:
            return unpack(chunks)[0]


def receive(peer: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        try:
            part = peer.recv(size - len(data))
        except ConnectionError:
            return None
        if not part:
            return None
        data += part
    return data


def test_a_request_for_a_billion_samples_is_refused_or_ends_the_connection(server: Loader, port: int) -> None:
    stream = still_serves(server).streams[0]
    get = Get(request=1, stream=stream.name, data=stream.data, recipe=stream.recipe, seed=0, epoch=0)
    before = memory(server)
    with hostile_peers.connect(port) as peer:
        assert isinstance(say(peer, hostile_peers.framed(Hello(version=PROTOCOL_VERSION, job="much"))), Welcome)
        rows = np.zeros(20_000, np.uint32), np.zeros(20_000, np.uint16)
        answer = say(peer, hostile_peers.framed(get, *rows))
        assert isinstance(answer, Refused)
        assert answer.reason == "bad_request"
        # A header that promises a billion, and the data of two.
        chunks = map(bytes, pack(get, [np.zeros(2, np.uint32), np.zeros(2, np.uint16)]))
        lie = [chunk.replace((2).to_bytes(8, "little"), (10**9).to_bytes(8, "little")) for chunk in chunks]
        assert say(peer, hostile_peers.in_frames(lie) * 100) is None
    assert memory(server) - before < 100 * MIB
    still_serves(server)


def test_who_never_reads_holds_a_bounded_share_and_others_are_served(server: Loader, port: int) -> None:
    stream = still_serves(server).streams[0]
    get = Get(request=0, stream=stream.name, data=stream.data, recipe=stream.recipe, seed=0, epoch=0)
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    peers = [hostile_peers.gets_unread(port, get) for _ in range(3)]
    try:
        with RemoteDataset(server.url, batch_size=32, shared_memory=False) as dataset:
            assert sum(len(labels) for _, labels in dataset) == SAMPLES
        # All answers that are not sent, in memory shared with workers and in ZeroMQ's hands.
        assert process.memory_info().rss - before < 4 * SEND_BYTES + 200 * MIB
    finally:
        for peer in peers:
            peer.close()


def test_however_many_never_read_they_hold_one_budget_and_make_room_for_who_does(server: Loader, port: int) -> None:
    stream = still_serves(server).streams[0]
    get = Get(request=0, stream=stream.name, data=stream.data, recipe=stream.recipe, seed=0, epoch=0)
    process = psutil.Process(server.process.pid)
    before, most = process.memory_info().rss, 0
    # 64 rows are an answer of 9.6 MB, far more than the sockets' buffers hold: seven of them fill the budget.
    peers = [hostile_peers.gets_unread(port, get, count=8, job=f"unread {number}") for number in range(16)]
    try:
        with RemoteDataset(server.url, batch_size=32, shared_memory=False) as dataset:
            rows = 0
            for _, labels in dataset:
                rows += len(labels)
                most = max(most, process.memory_info().rss)
        assert rows == SAMPLES
        assert "others wait for the memory" in server.output
        # Beside the budget one answer, what its worker keeps, and the front's own.
        assert most - before < SEND_BYTES + 6 * 11 * MIB + 40 * MIB
    finally:
        for peer in peers:
            peer.close()


def test_connections_that_say_nothing_do_not_use_up_the_descriptors(server: Loader, port: int) -> None:
    process, limit = psutil.Process(server.process.pid), resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (512, limit[1]))
    silent: list[socket.socket] = []
    try:
        silent.extend(socket.create_connection(("127.0.0.1", port), 20) for _ in range(600))
        wait_until(lambda: "as many as fit the descriptors" in server.output, what="a line in the log")
        wait_until(lambda: process.num_fds() < 400, what="room for descriptors")
        with RemoteDataset(server.url, batch_size=32) as dataset:
            assert sum(len(labels) for _, labels in dataset) == SAMPLES
    finally:
        for each in silent:
            each.close()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limit)


def test_a_trainer_is_served_while_hostile_peers_do_what_they_can(server: Loader, port: int) -> None:
    def rate() -> float:
        began = time.monotonic()
        with RemoteDataset(server.url, batch_size=32) as dataset:
            assert sum(len(labels) for _, labels in dataset) == SAMPLES
        return SAMPLES / (time.monotonic() - began)

    rate()
    alone = rate()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.system.hostile_peers", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as attackers:
        try:
            assert attackers.stdout is not None
            assert attackers.stdout.readline() == b"attacking\n"
            beside = rate()
        finally:
            attackers.kill()
    print(f"samples/s alone {alone:.0f}, beside hostile peers {beside:.0f}, ratio {beside / alone:.2f}")
    assert beside > alone / 10  # that of an idle machine is near 1; attackers and tests share the cores here
