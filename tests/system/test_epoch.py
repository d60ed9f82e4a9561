"""An epoch over real sockets, from real server processes, of real photographs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from shardfeed import BatchInfo, RemoteDataset
from tests.photographs import Photographs
from tests.system.loaders import Loader, write_photographs
from webdataset import tariterator

pytestmark = pytest.mark.xdist_group("epoch")  # two servers for all

SAMPLES = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("epoch")


@pytest.fixture(scope="module")
def shards(photographs: Photographs, folder: Path) -> list[Path]:
    return write_photographs(folder, photographs[:SAMPLES], count=8, name="train")


@pytest.fixture(scope="module")
def servers(shards: list[Path], temporary_folder: Path) -> Iterator[tuple[Loader, Loader]]:
    socket = f"ipc://{temporary_folder}/epoch"
    options = ("--resize", "64x64", "--workers", "1")
    first = Loader.of(shards, *options, bind=["tcp://127.0.0.1:0", socket], wait=False)
    with first as one, Loader.of(shards, *options) as two:
        one.wait_ready()
        yield one, two


def keys_of_epoch(dataset: RemoteDataset) -> list[str]:
    keys: list[str] = []
    for *_, info in dataset:
        assert isinstance(info, BatchInfo)
        keys += info.keys
    return keys


def digest_of_epoch(endpoints: str | list[str], **options: object) -> str:
    with RemoteDataset(endpoints, batch_size=64, seed=7, **options) as dataset:
        rows = sum(len(labels) for _, labels in dataset)
        assert rows == SAMPLES
        return dataset.digest


@pytest.mark.timeout(180)
def test_three_epochs_from_two_servers_each_bring_exactly_the_data_set_in_another_order(
    servers: tuple[Loader, Loader], photographs: Photographs
) -> None:
    with RemoteDataset([server.url for server in servers], batch_size=64, seed=0, info=True) as dataset:
        epochs = [keys_of_epoch(dataset) for _ in range(3)]
        assert dataset.epoch == 3
    everything = sorted(photograph.key for photograph in photographs[:SAMPLES])
    assert [sorted(keys) for keys in epochs] == [everything] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.timeout(300)
def test_an_epoch_is_the_same_whatever_carries_it(
    servers: tuple[Loader, Loader], shards: list[Path], tmp_path: Path
) -> None:
    one, two = servers
    tcp, ipc = one.endpoints
    config = tmp_path / "shardfeed.toml"
    config.write_text(
        f"""
        workers = 2
        [streams.default]
        shards = {[str(shard) for shard in shards]}
        fields = "jpg;png cls"
        transforms = ["resize=64x64"]
        """
    )
    digests = {
        "one server": digest_of_epoch(tcp),
        "the same again": digest_of_epoch(tcp),
        "two servers": digest_of_epoch([tcp, two.url]),
        "single": digest_of_epoch(tcp, framing="single"),
        "ipc": digest_of_epoch(ipc),
        "local": digest_of_epoch(f"local:{config}"),
        "another batch size and window": digest_of_epoch([tcp, two.url], prefetch_bytes=1),
    }
    assert len(set(digests.values())) == 1, digests
    assert digest_of_epoch(tcp, lanes=8) != digests["one server"]


def test_pictures_arrive_as_tariterator_decodes_them(photographs: Photographs, tmp_path: Path) -> None:
    shards = write_photographs(tmp_path, photographs[:48], count=2, name="plain")
    local: dict[str, np.ndarray] = {}
    for shard in shards:
        with shard.open("rb") as stream:
            local |= {sample["__key__"]: sample["jpg"] for sample in tariterator(stream, decoder="rgb8")}
    with Loader.of(shards, "--workers", "1") as server, RemoteDataset(server.url, batch_size=10, info=True) as dataset:
        seen = 0
        for images, labels, info in dataset:
            assert images.dtype == torch.uint8
            assert labels.dtype == torch.int64
            for image, key in zip(images, info.keys, strict=True):
                assert np.array_equal(image.numpy(), local[key])
                seen += 1
        assert seen == 48


def test_without_shuffle_one_rank_reads_in_file_order(servers: tuple[Loader, Loader], photographs: Photographs) -> None:
    with RemoteDataset(servers[0].url, batch_size=128, shuffle=False, info=True) as dataset:
        _, labels, info = next(iter(dataset))
        assert info.keys == [photograph.key for photograph in photographs[:128]]
        assert labels.tolist() == [photograph.label for photograph in photographs[:128]]


def test_the_default_is_exact_for_one_rank_and_padded_for_several(servers: tuple[Loader, Loader]) -> None:
    url = servers[0].url
    with RemoteDataset(url, batch_size=300, info=True) as dataset:
        assert len(dataset) == 4
        assert [len(info.keys) for *_, info in dataset] == [300] * 3 + [100]
    keys: list[str] = []
    for rank in range(2):
        with RemoteDataset(url, batch_size=300, rank=rank, world_size=2, info=True) as dataset:
            assert len(dataset) == 2
            batches = [info for *_, info in dataset]
        assert [len(info.keys) for info in batches] == [300] * 2
        keys += [key for info in batches for key, valid in zip(info.keys, info.valid, strict=True) if valid]
    assert len(keys) == len(set(keys)) == SAMPLES
    with RemoteDataset(url, batch_size=300, drop_last=True, info=True) as dataset:
        assert [len(info.keys) for *_, info in dataset] == [300] * 3
