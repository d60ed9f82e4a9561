"""Where the kernel has no SCTP the error says so, and what to do, when a server starts and when a client connects."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

import pytest

from shardfeed import PlainDataset, PlainSender, RemoteDataset
from shardfeed_wire.errors import EndpointError
from shardfeed_wire.transport import Limits, Network
from tests.photographs import Photographs
from tests.system.loaders import Loader, write_photographs

LIMITS = Limits(frame_bytes=1 << 20)


@pytest.fixture(autouse=True)
def no_sctp() -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as error:
        assert error.errno == errno.EPROTONOSUPPORT  # noqa: PT017 - any kernel may refuse, and this one decides a skip
    else:
        pytest.skip("[guest] this kernel has SCTP: how it is without cannot be seen here")


def test_to_listen_or_connect_says_how_to_get_it() -> None:
    async def act() -> None:
        network = Network()
        try:
            with pytest.raises(EndpointError, match=r"sctp://127.0.0.1:0.*no SCTP.*modprobe sctp"):
                network.listen("sctp://127.0.0.1:0", LIMITS)
            with pytest.raises(EndpointError, match=r"sctp://127.0.0.1:7881.*no SCTP.*modprobe sctp"):
                await network.connect("sctp://127.0.0.1:7881", LIMITS)
        finally:
            network.close()

    asyncio.run(act())


def test_a_trainer_hears_it_at_once_and_not_when_its_patience_ends() -> None:
    with (
        RemoteDataset("sctp://127.0.0.1:7881", batch_size=4, connect_timeout=3600) as dataset,
        pytest.raises(EndpointError, match="modprobe sctp"),
    ):
        next(iter(dataset))


def test_a_server_does_not_start_without_it(tmp_path: Path) -> None:
    loader = Loader([tmp_path / "none.tar", "--fields", "jpg cls", "--bind", "sctp://127.0.0.1:0"], wait=False)
    assert loader.wait() != 0
    assert "modprobe sctp" in loader.output


def test_a_plain_stream_says_it_when_the_sender_is_made_and_at_the_data_set_s_first_iter() -> None:
    with pytest.raises(EndpointError, match=r"sctp://127.0.0.1:7891.*no SCTP.*modprobe sctp"):
        PlainSender("sctp://127.0.0.1:7891")
    with (
        PlainDataset("sctp://127.0.0.1:0") as dataset,
        pytest.raises(EndpointError, match=r"sctp://127.0.0.1:0.*no SCTP.*modprobe sctp"),
    ):
        iter(dataset)


def test_a_server_that_is_to_send_over_it_ends_and_says_why(tmp_path: Path, photographs: Photographs) -> None:
    shards = write_photographs(tmp_path, photographs[:4], count=1)
    loader = Loader.of(shards, "--workers", "1", "--push", "sctp://127.0.0.1:7891")
    assert loader.wait() != 0
    assert "modprobe sctp" in loader.output
