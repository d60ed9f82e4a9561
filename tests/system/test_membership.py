"""Servers that join and leave while an epoch runs, and servers of which each reads only some shards."""

from __future__ import annotations

import logging
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardfeed import ConnectError, DataMismatchError, RecipeMismatchError, RemoteDataset, StarvedError
from tests.photographs import Photographs
from tests.system.loaders import Loader, wait_until, write_photographs
from webdataset.indexing import index_shards

pytestmark = pytest.mark.xdist_group("membership")  # one server that nothing happens to, for all

SAMPLES = 400
OPTIONS = ("--workers", "1")


@pytest.fixture(scope="module")
def shards(photographs_of: Callable[[int, int], Photographs], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Large enough for answers that are lent, whose descriptors would be seen were they kept."""
    return write_photographs(tmp_path_factory.mktemp("membership"), photographs_of(64, 64)[:SAMPLES], count=4)


@pytest.fixture(scope="module")
def server(shards: list[Path]) -> Iterator[Loader]:
    with Loader.of(shards, *OPTIONS) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(server: Loader) -> str:
    with RemoteDataset(server.url, batch_size=8) as dataset:
        assert sum(len(labels) for _, labels in dataset) == SAMPLES
        return dataset.digest


def test_servers_from_a_callable_join_and_leave_while_an_epoch_runs(
    server: Loader, shards: list[Path], undisturbed: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "shardfeed")
    now = [server.url]
    with (
        Loader.of(shards, *OPTIONS) as other,
        RemoteDataset(lambda: list(now), batch_size=8, prefetch_bytes=1) as dataset,
    ):
        batches = iter(dataset)
        next(batches)
        now[:] = [server.url, other.url]
        wait_until(lambda: f"a server joins: {other.url}" in caplog.text, what="the other server's joining")
        next(batches)
        now[:] = [other.url]
        wait_until(
            lambda: f"{server.url}: it is no longer among the endpoints" in caplog.text, what="the first's leaving"
        )
        for _ in batches:
            pass
        assert dataset.digest == undisturbed


def test_the_addresses_of_a_name_are_looked_up_again(
    server: Loader, undisturbed: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # There is no name service in a test to change, so the look-up itself answers for one made-up name.
    caplog.set_level(logging.INFO, "shardfeed")
    port = int(server.url.rpartition(":")[2])
    addresses = ["127.0.0.9"]  # nobody listens there
    really = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "loaders.test":
            return really(host, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with RemoteDataset(f"tcp://loaders.test:{port}", batch_size=8, connect_timeout=20) as dataset:
        addresses.append("127.0.0.1")
        assert sum(len(labels) for _, labels in dataset) == SAMPLES
        assert dataset.digest == undisturbed


def test_a_name_that_cannot_be_looked_up_for_a_while_takes_nobody_away(
    server: Loader,
    shards: list[Path],
    undisturbed: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "shardfeed")
    failed = threading.Event()
    really = socket.getaddrinfo

    with Loader.of(shards, *OPTIONS) as other:
        port = int(other.url.rpartition(":")[2])
        down = False

        def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
            if host != "loaders.test":
                return really(host, *arguments, **options)
            if down:
                failed.set()
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        urls = [server.url, f"tcp://loaders.test:{port}"]
        with RemoteDataset(urls, batch_size=8, prefetch_bytes=1, connect_timeout=20) as dataset:
            batches = iter(dataset)
            next(batches)
            down = True
            assert failed.wait(60)
            failed.clear()
            assert failed.wait(60)  # what came of the first look-up has happened by now
            for _ in batches:
                pass
            assert dataset.digest == undisturbed
            assert "lost a server" not in caplog.text


def test_a_callable_that_fails_for_a_while_takes_nobody_away(server: Loader, undisturbed: str) -> None:
    failed = threading.Event()
    calls = iter(range(1_000))

    def endpoints() -> str:
        if next(calls) in (1, 2, 4):
            failed.set()
            raise OSError("the registry is restarting")
        return server.url

    with RemoteDataset(endpoints, batch_size=8, prefetch_bytes=1) as dataset:
        batches = iter(dataset)
        next(batches)
        assert failed.wait(60)
        for _ in batches:
            pass
        assert dataset.digest == undisturbed


def test_a_callable_that_never_works_is_named_with_its_error() -> None:
    def endpoints() -> str:
        raise KeyError("LOADERS")

    with pytest.raises(ConnectError, match=r"callable raised KeyError: 'LOADERS'"):
        iter(RemoteDataset(endpoints, batch_size=8, connect_timeout=1))


@pytest.mark.parametrize(
    ("count", "recipe", "size", "error", "told"),
    [
        (
            None,
            ("--resize", "16x16"),
            (16, 16),
            RecipeMismatchError,
            "came back with another recipe .*now and before: .*resize=16x16.*close",
        ),
        (1, (), (64, 64), DataMismatchError, "came back with other data .*close"),
    ],
)
def test_a_rolling_update_to_another_recipe_or_data_never_mixes_and_the_trainer_is_told(
    shards: list[Path],
    count: int | None,
    recipe: tuple[str, ...],
    size: tuple[int, int],
    error: type[Exception],
    told: str,
) -> None:
    with Loader.of(shards, *OPTIONS) as old:
        url = old.url
        with RemoteDataset(url, batch_size=8, prefetch_bytes=1, timeout=60) as dataset:
            batches = iter(dataset)
            next(batches)
            old.stop()
            with Loader.of(shards[:count], *recipe, *OPTIONS, bind=[url]):
                with pytest.raises(error, match=told):
                    for images, _ in batches:
                        assert images.shape[1:3] == (64, 64)
                dataset.close()
                assert all(images.shape[1:3] == size for images, _ in dataset)


# ------------------------------------------------------------------------------------ different shards


@pytest.fixture(scope="module")
def manifest(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "train.manifest"
    index_shards(shards).save(path)
    return path


def data_node(folder: Path, shards: list[Path], here: set[int], manifest: Path) -> Loader:
    """A server on a node whose disk has some of the shards. It starts meanwhile."""
    folder.mkdir()
    for number in here:
        shutil.copy2(shards[number], folder)
    options = (*OPTIONS, "--manifest", str(manifest), "--partial")
    return Loader.of([folder / shard.name for shard in shards], *options, wait=False)


def test_servers_that_each_read_some_shards_serve_the_whole_and_one_of_two_holders_is_not_missed(
    shards: list[Path], manifest: Path, undisturbed: str, tmp_path: Path
) -> None:
    with (
        data_node(tmp_path / "a", shards, {0, 1, 2}, manifest) as one,
        data_node(tmp_path / "b", shards, {1, 2, 3}, manifest) as two,
        data_node(tmp_path / "c", shards, {0, 3}, manifest) as three,
    ):
        for node in (one, two, three):
            node.wait_ready()
        assert "reads 3 of these shards" in one.output
        with RemoteDataset([one.url, two.url, three.url], batch_size=8, prefetch_bytes=1) as dataset:
            for step, _ in enumerate(dataset):
                if step == 10:
                    two.kill()
            assert dataset.digest == undisturbed


def test_with_the_only_holder_of_a_shard_gone_the_trainer_is_told_its_name_within_the_timeout(
    shards: list[Path], manifest: Path, tmp_path: Path
) -> None:
    with (
        data_node(tmp_path / "a", shards, {0, 1, 2}, manifest) as one,
        data_node(tmp_path / "b", shards, {0, 1, 2, 3}, manifest) as two,
    ):
        one.wait_ready()
        two.wait_ready()
        with RemoteDataset([one.url, two.url], batch_size=8, prefetch_bytes=1, timeout=3) as dataset:
            batches = iter(dataset)
            next(batches)
            two.kill()
            with pytest.raises(StarvedError, match=r"train-000003\.tar") as caught:
                for _ in batches:
                    pass
            assert two.url in str(caught.value)


def test_a_shard_that_no_server_reads_is_named_at_the_start(shards: list[Path], manifest: Path, tmp_path: Path) -> None:
    with (
        data_node(tmp_path / "a", shards, {0, 1}, manifest) as one,
        data_node(tmp_path / "b", shards, {1, 3}, manifest) as two,
    ):
        one.wait_ready()
        two.wait_ready()
        with pytest.raises(ConnectError, match=r"no server reads 'train-000002\.tar'") as caught:
            iter(RemoteDataset([one.url, two.url], batch_size=8, connect_timeout=3))
    assert "train-000001" not in str(caught.value)


def test_partial_without_a_manifest_is_refused(shards: list[Path]) -> None:
    loader = Loader([*shards, "--fields", "jpg cls", "--partial"], wait=False)
    with loader:
        assert loader.wait() == 1
    assert "share one manifest" in loader.output
