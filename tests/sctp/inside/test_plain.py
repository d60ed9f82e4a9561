"""Plain streams over SCTP: the documented ``tenbin.sctp_send`` and ``sctp_recv`` on the other side, and ours."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sctp
import torch

from shardfeed import ConfigError, PlainDataset, PlainSender, StarvedError, TenbinError
from tests.sctp.inside.kernel import raised_buffers
from webdataset import tenbin

PATIENCE = 45.0
ANY = "sctp://127.0.0.1:0"

pytestmark = pytest.mark.timeout(150)


def batch(number: int, rows: int = 4) -> list[Any]:
    return [np.full((rows, 3), number, "f4"), np.arange(number, number + rows)]


def number_of(got: Any) -> int:
    return int(got[0].flatten()[0])


def url_of(receiver: Any) -> str:
    return f"sctp://127.0.0.1:{receiver.getsockname()[1]}"


@contextlib.contextmanager
def documented(*, one_to_many: bool, backlog: int = 5, buffer: int | None = None) -> Iterator[Any]:
    """A socket as the documented ``sctp_recv`` takes it."""
    opened = (sctp.sctpsocket_udp if one_to_many else sctp.sctpsocket_tcp)(socket.AF_INET)
    if buffer is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    opened.bind(("127.0.0.1", 0))
    opened.listen(backlog)
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def received_by(receiver: Any, count: int) -> Iterator[list[Any]]:
    """Read so many messages by the documented function, at the same time; they are there at the end."""
    got: list[Any] = []
    reading = threading.Thread(target=lambda: got.extend(tenbin.sctp_recv(receiver, infos=True) for _ in range(count)))
    reading.start()
    try:
        yield got
    finally:
        reading.join(PATIENCE)
    assert not reading.is_alive()


@pytest.mark.parametrize("one_to_many", [False, True], ids=["one-to-one", "one-to-many"])
def test_the_documented_sctp_recv_reads_what_a_sender_sends_whole_in_order_and_with_names(one_to_many: bool) -> None:
    with documented(one_to_many=one_to_many) as receiver:
        with (
            received_by(receiver, 20) as got,
            PlainSender(url_of(receiver), infos=["x", "y"], timeout=PATIENCE) as ours,
        ):
            for number in range(20):
                ours.send(batch(number))
        assert [names for _, names in got] == [["x", "y"]] * 20
        for number, (arrays, _) in enumerate(got):
            for one, other in zip(arrays, batch(number), strict=True):
                np.testing.assert_array_equal(one, other)
        assert (ours.sent, ours.dropped) == (20, 0)


def test_batches_of_a_sender_that_is_gone_are_read_yet() -> None:
    with documented(one_to_many=False) as receiver:
        with PlainSender(url_of(receiver), timeout=PATIENCE) as ours:
            for number in range(4):
                ours.send(batch(number))
        assert [number_of(tenbin.sctp_recv(receiver)) for _ in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [sctp.sctpsocket_tcp, sctp.sctpsocket_udp], ids=["one-to-one", "one-to-many"])
def test_what_the_documented_sctp_send_sends_is_received_from_several_in_turn(kind: Any) -> None:
    with PlainDataset(ANY, length=30, infos=True, timeout=PATIENCE) as train:
        iterator = iter(train)
        destination = ("127.0.0.1", int(train.urls[0].rpartition(":")[2]))
        senders = [kind(socket.AF_INET) for _ in range(3)]
        for place, sender in enumerate(senders):
            if kind is sctp.sctpsocket_tcp:
                sender.connect(destination)
            for number in range(10):
                tenbin.sctp_send(sender, destination, batch(10 * place + number), infos=["x", "y"])
        got = list(iterator)
        for sender in senders:
            sender.close()
    assert all(names == ["x", "y"] for _, names in got)
    numbers = [number_of(arrays) for arrays, _ in got]
    assert sorted(numbers) == list(range(30))
    for place in range(3):
        assert [number for number in numbers if number // 10 == place] == list(range(10 * place, 10 * place + 10))


@pytest.mark.parametrize("framing", ["multipart", "single"])
def test_a_sender_and_a_data_set_of_ours_need_not_agree_on_zeromqs_framing(framing: Any) -> None:
    with PlainDataset("sctp://127.0.0.1,127.0.0.2:0", length=50, timeout=PATIENCE) as train:
        iterator = iter(train)
        with PlainSender(train.urls[0], framing=framing, timeout=PATIENCE) as ours:
            sending = threading.Thread(target=ours.send_all, args=(map(batch, range(50)),))
            sending.start()
            got = list(iterator)
            sending.join(PATIENCE)
        assert [number_of(arrays) for arrays in got] == list(range(50))
        assert torch.equal(got[7][0], torch.full((4, 3), 7.0))


def test_a_batch_above_a_socket_s_own_buffer_arrives_at_either_receiver() -> None:
    large = np.arange(2_200_000, dtype="u4")  # more than a socket has room for unless it is told
    with raised_buffers(4 << 20), documented(one_to_many=False, buffer=4 << 20) as receiver:
        with received_by(receiver, 1) as got, PlainSender(url_of(receiver), timeout=PATIENCE) as ours:
            ours.send([large])
        np.testing.assert_array_equal(got[0][0][0], large)
    with PlainDataset(ANY, timeout=PATIENCE) as train:
        iterator = iter(train)
        with PlainSender(train.urls, timeout=PATIENCE) as ours:
            ours.send([large])
            np.testing.assert_array_equal(next(iterator)[0].numpy(), large)


def test_a_batch_above_what_the_kernel_lets_an_ordinary_user_send_is_refused_with_sizes_and_the_way_out() -> None:
    os.seteuid(65_534)  # the privilege to exceed net.core.wmem_max goes with it
    try:
        with documented(one_to_many=False) as receiver, PlainSender(url_of(receiver), timeout=PATIENCE) as ours:
            with pytest.raises(ConfigError, match=r"8000096 bytes .*sysctl -w net\.core\.wmem_max=8000096"):
                ours.send([np.zeros(1_000_000)])
            ours.send(batch(1))
            assert number_of(tenbin.sctp_recv(receiver)) == 1
    finally:
        os.seteuid(0)


def test_a_sender_waits_for_its_receiver_and_says_so_after_its_timeout() -> None:
    with documented(one_to_many=False) as receiver:
        url = url_of(receiver)
    with PlainSender(url, timeout=0.5) as ours, pytest.raises(StarvedError, match=f"a receiver .* {url}"):
        ours.send(batch(0))
    with PlainSender(url, timeout=PATIENCE) as ours:
        sending = threading.Thread(target=ours.send, args=(batch(1),))
        sending.start()
        with PlainDataset(url, length=1, timeout=PATIENCE) as train:
            assert [number_of(arrays) for arrays in train] == [1]
        sending.join(PATIENCE)


@pytest.mark.parametrize("documented_receiver", [True, False])
def test_a_receiver_that_stops_holds_a_sender_back(documented_receiver: bool) -> None:
    rows = 100_000  # 2 MB a batch
    with documented(one_to_many=False, backlog=2) as theirs, PlainDataset(ANY, high_water=2, timeout=PATIENCE) as train:
        iterator = iter(train)
        url = url_of(theirs) if documented_receiver else train.urls[0]
        with PlainSender(url, timeout=1.0) as ours:
            with pytest.raises(StarvedError):
                for number in range(50):
                    ours.send(batch(number, rows))
            sent = ours.sent
            assert 1 <= sent <= 8
            if documented_receiver:
                got = [tenbin.sctp_recv(theirs) for _ in range(sent)]
            else:
                got = [next(iterator) for _ in range(sent)]
            assert [number_of(arrays) for arrays in got] == list(range(sent))
            assert all(len(arrays[1]) == rows for arrays in got)


def test_a_message_above_the_bound_ends_its_association_and_others_go_on() -> None:
    with PlainDataset(ANY, frame_bytes=100_000, timeout=PATIENCE) as train:
        iterator = iter(train)
        with PlainSender(train.urls, timeout=PATIENCE) as ours:
            ours.send([np.zeros(1_000_000, "u1")])
            with pytest.raises(TenbinError, match=r"from 127.0.0.1\) was cut off.* 100,000 bytes.* raise frame_bytes"):
                next(iterator)
            ours.send(batch(5))
            assert number_of(next(iterator)) == 5


def test_on_error_skip_leaves_garbage_of_several_out_and_counts_it() -> None:
    with PlainDataset(ANY, on_error="skip", timeout=PATIENCE) as train:
        iterator = iter(train)
        destination = ("127.0.0.1", int(train.urls[0].rpartition(":")[2]))
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP))
                sender.connect(destination)
                sender.send(b"what is no batch")
            with PlainSender(train.urls, timeout=PATIENCE) as ours:
                ours.send(batch(6))
            assert number_of(next(iterator)) == 6
        assert train.skipped == 3


def test_what_is_no_batch_is_raised_with_who_sent_it_and_the_pass_can_go_on() -> None:
    with PlainDataset(ANY, timeout=PATIENCE) as train:
        iterator = iter(train)
        stranger = sctp.sctpsocket_tcp(socket.AF_INET)
        destination = ("127.0.0.1", int(train.urls[0].rpartition(":")[2]))
        stranger.connect(destination)
        stranger.sctp_send(b"nonsense")
        with pytest.raises(TenbinError, match=r"sctp://127.0.0.1:\d+ \(from 127.0.0.1\) sent what is no batch"):
            next(iterator)
        tenbin.sctp_send(stranger, destination, batch(3))
        assert number_of(next(iterator)) == 3
        stranger.close()


def test_who_connects_and_says_nothing_is_passed_over_by_either_receiver() -> None:
    with documented(one_to_many=False) as theirs, PlainDataset(ANY, timeout=PATIENCE) as train:
        iterator = iter(train)
        for url, take in ((url_of(theirs), lambda: tenbin.sctp_recv(theirs)), (train.urls[0], lambda: next(iterator))):
            silent = sctp.sctpsocket_tcp(socket.AF_INET)
            silent.connect(("127.0.0.1", int(url.rpartition(":")[2])))
            silent.close()
            with PlainSender(url, timeout=PATIENCE) as ours:
                ours.send(batch(8))
            assert number_of(take()) == 8


def test_a_batch_under_way_when_its_receiver_is_killed_is_counted_and_the_next_waits_for_another() -> None:
    program = (
        "import socket, sys\n"
        "one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)\n"
        "one.bind(('127.0.0.1', 0)); one.listen(1); print(one.getsockname()[1], flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        url = f"sctp://127.0.0.1:{victim.stdout.readline().strip()}"
        with PlainSender(url, timeout=PATIENCE) as ours:
            ours.send(batch(0, rows=1_000_000))  # more than the victim's kernel takes unread
            victim.kill()
            victim.wait(PATIENCE)
            with PlainDataset(url, length=1, timeout=PATIENCE) as train:
                iterator = iter(train)
                ours.send(batch(1))
                assert [number_of(arrays) for arrays in iterator] == [1]
            assert (ours.sent, ours.dropped) == (2, 1)


def test_a_push_to_several_goes_to_those_that_are_there() -> None:
    with documented(one_to_many=False) as nobody:
        missing = url_of(nobody)
    with PlainDataset(ANY, length=6, timeout=PATIENCE) as train:
        iterator = iter(train)
        with PlainSender([missing, train.urls[0]], timeout=PATIENCE) as ours:
            sending = threading.Thread(target=ours.send_all, args=(map(batch, range(6)),))
            sending.start()
            assert [number_of(arrays) for arrays in iterator] == list(range(6))
            sending.join(PATIENCE)
