"""CURVE between real servers and trainers: what passes on the wire, who gets in, and who may read which stream."""

from __future__ import annotations

import pickle
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfeed import RemoteDataset
from shardfeed.inquiry import ask_server
from shardfeed_wire.curve import load_server_keys
from shardfeed_wire.errors import ConfigError, ConnectError, UnknownStreamError
from shardfeed_wire.keygen import make_client, make_server
from tests.cli.command import run
from tests.photographs import Photographs
from tests.system.loaders import Loader, write_photographs
from tests.system.recording_proxy import RecordingProxy

pytestmark = pytest.mark.xdist_group("curve")  # one process starts the server of all

SAMPLES = 120


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of a server and two clients: ``trainer`` reads every stream, ``guest`` only ``val``."""
    folder = tmp_path_factory.mktemp("keys") / "keys"
    public = load_server_keys(make_server(folder)).public.decode()
    make_client(folder, "trainer", public, allowed=folder / "clients")
    make_client(folder, "guest", public, allowed=folder / "clients", streams=["val"])
    return folder


@pytest.fixture(scope="module")
def shards(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photographs(tmp_path_factory.mktemp("curve"), photographs[:SAMPLES], count=2)


@pytest.fixture(scope="module")
def config(shards: list[Path], keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tmp_path_factory.mktemp("config") / "shardfeed.toml"
    config.write_text(
        f"""
        bind = ["tcp://0.0.0.0:0"]
        curve = "{keys / "server.toml"}"
        workers = 1
        http = "off"
        [streams.train]
        shards = {[str(shard) for shard in shards]}
        fields = "jpg cls"
        decode = false
        [streams.val]
        shards = "{shards[0]}"
        fields = "jpg cls"
        decode = false
        """
    )
    return config


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[Loader]:
    with Loader(["--config", config]) as loader:
        loader.endpoints = [url.replace("0.0.0.0", "127.0.0.1") for url in loader.endpoints]
        yield loader


def test_no_byte_of_a_picture_passes_in_the_clear(
    server: Loader, config: Path, keys: Path, photographs: Photographs
) -> None:
    pictures = [photograph.jpeg for photograph in photographs[:SAMPLES]]

    def passes(url: str, **options: object) -> bytes:
        with (
            RecordingProxy(url) as proxy,
            RemoteDataset(proxy.url, stream="train", batch_size=32, shared_memory=False, **options) as dataset,
        ):
            delivered = [bytes(picture) for pictures, _ in dataset for picture in pictures]
            assert sorted(delivered) == sorted(pictures)
            return proxy.seen

    encrypted = passes(server.url, curve=keys / "trainer.toml")
    assert len(encrypted) > sum(map(len, pictures))
    middles = [picture[len(picture) // 2 :][:24] for picture in pictures]
    assert not any(middle in encrypted for middle in middles)
    assert b"train" not in encrypted  # nor of a control message
    with Loader(["--config", config, "--curve", "", "--bind", "tcp://127.0.0.1:0"]) as plain:  # the check can fail
        clear = passes(plain.url)
        assert all(middle in clear for middle in middles)
        assert b"train" in clear


def test_a_client_sees_and_reads_only_the_streams_that_are_its_own(server: Loader, keys: Path) -> None:
    everything = ask_server(server.url, curve=keys / "trainer.toml")
    assert {stream.name for stream in everything.streams} == {"train", "val"}
    seen = ask_server(server.url, curve=keys / "guest.toml")
    assert [stream.name for stream in seen.streams] == ["val"]
    with RemoteDataset(server.url, stream="val", batch_size=32, curve=keys / "guest.toml") as dataset:
        assert sum(len(labels) for _, labels in dataset) == SAMPLES // 2
    with (
        RemoteDataset(server.url, stream="train", batch_size=32, curve=keys / "guest.toml") as dataset,
        pytest.raises(UnknownStreamError, match="it serves: val"),
    ):
        next(iter(dataset))


def test_a_trainer_without_keys_is_told_what_is_missing(server: Loader) -> None:
    with (
        RemoteDataset(server.url, stream="train", batch_size=32, connect_timeout=2) as dataset,
        pytest.raises(ConnectError, match="the server demands CURVE keys; pass a client's key file"),
    ):
        next(iter(dataset))


def test_commands_that_are_clients_take_keys(server: Loader, keys: Path) -> None:
    trainer = ("--curve", keys / "trainer.toml")
    assert "stream val" in run("info", server.url, *trainer).stdout
    assert len(run("digest", server.url, "--stream", "val", *trainer).stdout.strip()) == 32


def test_a_pickled_data_set_holds_no_secret(keys: Path) -> None:
    dataset = RemoteDataset("tcp://127.0.0.1:1", batch_size=1, curve=keys / "trainer.toml")
    secret = (keys / "trainer.toml").read_text().split('secret = "')[1].split('"')[0]
    assert secret.encode() not in pickle.dumps(dataset)


def test_a_key_file_that_is_none_is_an_error_before_anything_is_iterated(keys: Path) -> None:
    with pytest.raises(ConfigError, match="has the keys of a server, not of a client"):
        RemoteDataset("tcp://127.0.0.1:1", batch_size=1, curve=keys / "server.toml")


def test_a_private_server_needs_no_keys(config: Path) -> None:
    with RemoteDataset(f"local:{config}", stream="val", batch_size=32) as dataset:
        assert sum(len(labels) for _, labels in dataset) == SAMPLES // 2


def test_keygen_says_what_comes_next_and_lets_a_client_make_its_own(tmp_path: Path) -> None:
    made = run("keygen", tmp_path / "server")
    assert "--curve" in made.stdout
    assert 'curve="trainer.toml"' in made.stdout
    public = made.stdout.split("the servers' public key: ")[1].split("\n")[0]
    own = run("keygen", tmp_path / "client", "--server", public, "--client", "own", "--stream", "val")
    assert own.returncode == 0, own.stderr
    (tmp_path / "server/clients/own.toml").write_text(own.stdout.split("own.toml:\n")[1])
    again = run("keygen", tmp_path / "server", "--client", "own")
    assert again.returncode == 1
    assert "keys are never overwritten" in again.stderr
    for arguments, said in (
        ([tmp_path / "client", "--server", public[:-1], "--client", "cut"], "is no server's public key"),
        ([tmp_path / "server", "--stream", "val"], "add --client NAME"),
    ):
        wrong = run("keygen", *arguments)
        assert wrong.returncode == 1
        assert said in wrong.stderr
    assert not (tmp_path / "client/cut.toml").exists()


def test_a_client_may_read_a_stream_of_any_name(tmp_path: Path) -> None:
    folder = make_server(tmp_path / "keys").parent
    name = 'a "b" \\ grün'
    made = make_client(folder, "own", load_server_keys(folder / "server.toml").public.decode(), streams=[name])
    assert tomllib.loads(made.text)["streams"] == [name]
