"""The documented ``tenbin.sctp_send`` and ``sctp_recv`` on real pysctp sockets, one-to-one and one-to-many."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sctp

from shardfeed_wire.errors import ConfigError, TenbinError
from tests.sctp.inside.kernel import raised_buffers
from webdataset import tenbin

ARRAYS = [np.arange(6, dtype="f4").reshape(2, 3), np.zeros((0, 4), "i8"), np.array(7, "u1")]
NAMES = ["a", "b", "c"]


def assert_same(got: list[Any], expected: list[Any] = ARRAYS) -> None:
    assert [(array.shape, array.dtype) for array in got] == [(array.shape, array.dtype) for array in expected]
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def listener() -> Iterator[Any]:
    """A one-to-one socket that listens."""
    opened = sctp.sctpsocket_tcp(socket.AF_INET)
    opened.bind(("127.0.0.1", 0))
    opened.listen(5)
    yield opened
    opened.close()


@pytest.fixture
def many() -> Iterator[Any]:
    """A one-to-many socket that takes associations."""
    opened = sctp.sctpsocket_udp(socket.AF_INET)
    opened.bind(("127.0.0.1", 0))
    opened.listen(5)
    yield opened
    opened.close()


def connected_to(listener: Any) -> Any:
    client = sctp.sctpsocket_tcp(socket.AF_INET)
    client.connect(listener.getsockname())
    return client


def test_one_to_one_a_listening_socket_accepts_one_message(listener: Any) -> None:
    client = connected_to(listener)
    tenbin.sctp_send(client, listener.getsockname(), ARRAYS, infos=NAMES)
    got, names = tenbin.sctp_recv(listener, infos=True)
    assert_same(got)
    assert names == NAMES
    with pytest.raises(OSError):  # that connection is closed again
        for _ in range(100):
            tenbin.sctp_send(client, listener.getsockname(), ARRAYS)
    client.close()


def test_one_to_one_a_connected_pair_exchanges_messages_both_ways(listener: Any) -> None:
    client = connected_to(listener)
    server, _ = listener.accept()
    for _ in range(3):
        tenbin.sctp_send(client, listener.getsockname(), ARRAYS, infos=NAMES)
        assert_same(tenbin.sctp_recv(server, infos=NAMES))
        tenbin.sctp_send(server, client.getsockname(), ARRAYS)
        assert_same(tenbin.sctp_recv(client))
    client.close()
    server.close()


def test_one_to_many_gets_messages_of_several_senders(many: Any) -> None:
    senders = [sctp.sctpsocket_udp(socket.AF_INET) for _ in range(3)]
    for number, sender in enumerate(senders):
        tenbin.sctp_send(sender, many.getsockname(), [np.full(10, number)], infos=["number"])
    got = [int(tenbin.sctp_recv(many, infos=["number"])[0][0]) for _ in senders]
    assert sorted(got) == [0, 1, 2]
    for sender in senders:
        sender.close()


def test_a_large_message_that_comes_in_parts_is_put_together() -> None:
    array = np.arange(5_000_000, dtype="u4")
    with raised_buffers(64 << 20):
        listener = sctp.sctpsocket_tcp(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        client = sctp.sctpsocket_tcp(socket.AF_INET)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 40 << 20)
        client.connect(listener.getsockname())
        sending = threading.Thread(target=tenbin.sctp_send, args=(client, listener.getsockname(), [array]))
        sending.start()
        try:
            assert_same(tenbin.sctp_recv(listener), [array])
        finally:
            client.close()
            listener.close()
            sending.join()


def test_a_message_larger_than_the_send_buffer_is_refused_with_sizes_and_the_way_out(listener: Any) -> None:
    client = connected_to(listener)
    room = client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    with pytest.raises(ConfigError, match=rf"8000096 bytes .* send buffer of {room}: .*SO_SNDBUF.*net\.core\.wmem_max"):
        tenbin.sctp_send(client, listener.getsockname(), [np.zeros(1_000_000)])
    client.close()


def test_a_message_above_maxsize_is_refused(listener: Any) -> None:
    client = connected_to(listener)
    tenbin.sctp_send(client, listener.getsockname(), ARRAYS)
    with pytest.raises(TenbinError, match="more than maxsize = 99 bytes"):
        tenbin.sctp_recv(listener, maxsize=99)
    client.close()


def test_an_association_that_ends_is_an_error(listener: Any) -> None:
    client = connected_to(listener)
    server, _ = listener.accept()
    client.close()
    with pytest.raises(TenbinError, match="ended after 0 bytes"):
        tenbin.sctp_recv(server)
    server.close()


def test_what_is_not_tenbin_is_an_error(listener: Any) -> None:
    client = connected_to(listener)
    client.sctp_send(b"nonsense")
    with pytest.raises(TenbinError):
        tenbin.sctp_recv(listener)
    client.close()
