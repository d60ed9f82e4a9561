"""An epoch over SCTP from real servers: what ZeroMQ gives, whoever dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfeed import RemoteDataset
from tests.photographs import Photographs
from tests.system.loaders import Loader, write_photographs

SAMPLES = 600
BOTH = ("sctp://127.0.0.1:0", "tcp://127.0.0.1:0")
OPTIONS = ("--resize", "64x64", "--workers", "1")

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def shards(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photographs(tmp_path_factory.mktemp("epoch"), photographs[:SAMPLES], count=4)


@pytest.fixture(scope="module")
def servers(shards: list[Path]) -> Iterator[tuple[Loader, Loader]]:
    with Loader.of(shards, *OPTIONS, bind=BOTH) as one, Loader.of(shards, *OPTIONS, bind=BOTH) as two:
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
