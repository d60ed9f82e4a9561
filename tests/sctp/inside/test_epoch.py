"""An epoch over SCTP from real servers: what ZeroMQ gives, whoever dies."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sctp

from shardfeed import RemoteDataset
from tests.photographs import Photographs
from tests.sctp.inside.small import write_small_photographs
from tests.system.loaders import Loader
from webdataset import tenbin

SAMPLES = 600
BOTH = ("sctp://127.0.0.1:0", "tcp://127.0.0.1:0")
OPTIONS = ("--workers", "1")

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def shards(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_small_photographs(tmp_path_factory.mktemp("epoch"), photographs[:SAMPLES], count=4)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Any]:
    """A socket of pysctp that listens."""
    opened = sctp.sctpsocket_tcp(socket.AF_INET)
    opened.bind(("127.0.0.1", 0))
    opened.listen(2)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def servers(shards: list[Path], receiver: Any) -> Iterator[tuple[Loader, Loader]]:
    """Two servers, the first of which sends to the receiver, too."""
    push = ("--push", f"sctp://127.0.0.1:{receiver.getsockname()[1]}", "--push-batch-size", "32")
    with Loader.of(shards, *OPTIONS, *push, bind=BOTH) as one, Loader.of(shards, *OPTIONS, bind=BOTH) as two:
        yield one, two


@pytest.fixture(scope="module")
def over_tcp(servers: tuple[Loader, Loader]) -> str:
    with RemoteDataset([loader.endpoints[1] for loader in servers], batch_size=32, shared_memory=False) as dataset:
        assert sum(len(labels) for _, labels in dataset) == SAMPLES
        return dataset.digest


@pytest.mark.parametrize("framing", ["multipart", "single"])
def test_an_epoch_from_two_servers_is_the_one_that_tcp_gives(
    servers: tuple[Loader, Loader], over_tcp: str, framing: str
) -> None:
    endpoints = [loader.endpoints[0] for loader in servers]
    assert all(url.startswith("sctp://127.0.0.1:") for url in endpoints)
    with RemoteDataset(endpoints, batch_size=32, framing=framing, shared_memory=False) as dataset:
        assert sum(len(labels) for _, labels in dataset) == SAMPLES
        assert dataset.digest == over_tcp


def test_a_server_killed_in_mid_epoch_loses_nothing(
    servers: tuple[Loader, Loader], shards: list[Path], over_tcp: str
) -> None:
    with (
        Loader.of(shards, *OPTIONS, bind=BOTH) as victim,
        RemoteDataset([victim.url, servers[0].url], batch_size=32, shared_memory=False) as dataset,
    ):
        for step, _ in enumerate(dataset):
            if step == 3:
                victim.kill()
        assert dataset.digest == over_tcp


def test_a_server_that_comes_back_serves_the_rest(
    servers: tuple[Loader, Loader], shards: list[Path], over_tcp: str
) -> None:
    victim = Loader.of(shards, *OPTIONS, bind=BOTH)
    url = victim.url
    with RemoteDataset(url, batch_size=32, timeout=100, shared_memory=False) as dataset:
        for step, _ in enumerate(dataset):
            if step == 3:
                victim.kill()
                victim = Loader.of(shards, *OPTIONS, bind=[url])
        assert dataset.digest == over_tcp
    assert victim.stop() == 0


def test_an_output_is_read_by_the_documented_sctp_recv(servers: tuple[Loader, Loader], receiver: Any) -> None:
    got = [tenbin.sctp_recv(receiver) for _ in range(4)]
    with RemoteDataset(servers[0].endpoints[1], batch_size=32, seed=0, rank=0, world_size=1) as dataset:
        for arrays, wanted in zip(got, dataset, strict=False):
            for one, other in zip(arrays, wanted, strict=True):
                np.testing.assert_array_equal(one, other.numpy())
