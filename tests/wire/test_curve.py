"""CURVE: who is let in, what the others are told, and what the server's log says of them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from shardfeed_wire.curve import ClientFolder, load_client_keys, load_server_keys
from shardfeed_wire.errors import BrokenChannelError, ConfigError, EndpointError
from shardfeed_wire.keygen import make_client, make_server
from shardfeed_wire.transport import Channel, Limits, Listener, Network, Transport, register
from tests.system.loaders import wait_until
from tests.wire.conformance_arena import as_bytes, greet, raises, soon

LIMITS = Limits(frame_bytes=1 << 20)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with a server's keys and those of one client, ``trainer``."""
    folder = tmp_path / "keys"
    server = load_server_keys(make_server(folder))
    make_client(folder, "trainer", server.public.decode(), allowed=folder / "clients")
    return folder


@contextmanager
def networks(server: Path | None, client: Path | None) -> Iterator[tuple[Network, Network]]:
    ours = Network(None if server is None else load_server_keys(server))
    theirs = Network(None if client is None else load_client_keys(client))
    try:
        yield ours, theirs
    finally:
        theirs.close()
        ours.close()


def meet(
    server: Path | None,
    client: Path | None,
    act: Callable[[Listener, Network], Awaitable[None]],
) -> None:
    async def within() -> None:
        with networks(server, client) as (ours, theirs):
            listener = ours.listen("tcp://127.0.0.1:0", LIMITS)
            try:
                await act(listener, theirs)
            finally:
                await listener.close()

    asyncio.run(within())


def test_a_client_that_is_let_in_is_known_by_its_key(keys: Path) -> None:
    async def act(listener: Listener, theirs: Network) -> None:
        channel = await soon(theirs.connect(listener.url, LIMITS))
        peer = await greet(channel, listener)
        assert listener.user(peer) == load_client_keys(keys / "trainer.toml").public.decode()
        await soon(listener.send(peer, [b"secret"]))
        assert as_bytes(await soon(channel.receive())) == [b"secret"]
        channel.close()

    meet(keys / "server.toml", keys / "trainer.toml", act)


def refusal(server: Path | None, client: Path | None) -> str:
    """What a client that does not get in is told."""
    told = []

    async def act(listener: Listener, theirs: Network) -> None:
        with pytest.raises(BrokenChannelError) as error:
            await soon(theirs.connect(listener.url, LIMITS))
        told.append(str(error.value))
        with pytest.raises(TimeoutError):
            await soon(listener.receive(), 0.3)

    meet(server, client, act)
    return told[0]


def test_a_key_file_that_begins_with_a_byte_order_mark_is_the_same_without(keys: Path) -> None:
    file = keys / "trainer.toml"
    plain = load_client_keys(file).public
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert load_client_keys(file).public == plain


def test_a_client_whose_key_the_server_does_not_know_is_told_so(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    (keys / "clients/trainer.toml").unlink()
    public = load_client_keys(keys / "trainer.toml").public.decode()
    assert f"does not let this client in: its key {public}" in refusal(keys / "server.toml", keys / "trainer.toml")
    assert f"refused a client from 127.0.0.1: its key {public} is in no file of" in caplog.text


def test_a_client_with_another_servers_key_is_told_so(
    keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = load_server_keys(make_server(tmp_path / "other")).public.decode()
    make_client(keys, "lost", other, allowed=keys / "clients")
    assert "probably `server` in" in refusal(keys / "server.toml", keys / "lost.toml")
    assert "it has another server's public key" in caplog.text


def test_a_clear_text_client_is_told_that_the_server_demands_keys(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "demands CURVE keys" in refusal(keys / "server.toml", None)
    assert ": refused " in caplog.text
    assert "speaks without CURVE" in caplog.text


def test_a_client_with_keys_is_told_that_the_server_has_none(keys: Path) -> None:
    assert "the server speaks without CURVE" in refusal(None, keys / "trainer.toml")


def test_strangers_fill_no_log(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def act(listener: Listener, theirs: Network) -> None:
        for _ in range(20):
            with pytest.raises(BrokenChannelError):
                await soon(theirs.connect(listener.url, LIMITS))

    meet(keys / "server.toml", None, act)
    # A kind of refusal is said once: the client noticed first, or the server did.
    assert 1 <= len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 2


def test_a_client_added_while_the_server_runs_gets_in(keys: Path) -> None:
    server = load_server_keys(keys / "server.toml").public.decode()

    async def act(listener: Listener, theirs: Network) -> None:
        with pytest.raises(BrokenChannelError):
            await soon(theirs.connect(listener.url, LIMITS))
        (keys / "clients/away").rename(keys / "clients/late.toml")
        channels: list[Channel] = []

        async def connect() -> None:
            channels.append(await theirs.connect(listener.url, LIMITS))
            raise _InError

        await raises(_InError, lambda: _ignore_broken(connect))
        channels[0].close()

    make_client(keys, "late", server, allowed=keys / "clients")
    (keys / "clients/late.toml").rename(keys / "clients/away")
    meet(keys / "server.toml", keys / "late.toml", act)


class _InError(Exception):
    pass


async def _ignore_broken(connect: Callable[[], Awaitable[None]]) -> None:
    with suppress(BrokenChannelError):
        await connect()


def test_a_client_taken_out_while_connected_is_cut_off_and_not_let_in_again(keys: Path) -> None:
    async def act(listener: Listener, theirs: Network) -> None:
        channel = await soon(theirs.connect(listener.url, LIMITS))
        peer = await greet(channel, listener)
        (keys / "clients/trainer.toml").unlink()
        with pytest.raises(BrokenChannelError):
            await soon(channel.receive())
        channel.close()
        await raises(BrokenChannelError, lambda: listener.send(peer, [b"late"]))
        with pytest.raises(BrokenChannelError, match="does not let this client in"):
            await soon(theirs.connect(listener.url, LIMITS))

    meet(keys / "server.toml", keys / "trainer.toml", act)


def test_a_peer_that_names_itself_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async def act(listener: Listener, _: Network) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as named:
            named.linger = 0
            named.routing_id = b"another's name"
            monitor = named.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            named.connect(listener.url)
            named.send(b"hello")
            with pytest.raises(TimeoutError):
                await soon(listener.receive(), 0.5)
            assert monitor.poll(10_000)
            named.disable_monitor()
            monitor.close(0)

    meet(None, None, act)
    assert "sets its own ZeroMQ identity" in caplog.text


def test_the_keys_of_a_peer_are_known_under_load(tmp_path: Path) -> None:
    """Eight clients send thousands of messages at once; each is known by its own key, every time."""
    server = load_server_keys(make_server(tmp_path))
    files = [
        make_client(tmp_path, f"c{number}", server.public.decode(), allowed=tmp_path / "clients").file
        for number in range(8)
    ]
    users = [load_client_keys(file).public.decode() for file in files]

    async def within() -> None:
        ours = Network(load_server_keys(tmp_path / "server.toml"))
        theirs = [Network(load_client_keys(file)) for file in files]
        listener = ours.listen("tcp://127.0.0.1:0", LIMITS)
        channels = [await soon(network.connect(listener.url, LIMITS)) for network in theirs]

        async def talk(number: int) -> None:
            for _ in range(400):
                await channels[number].send([str(number).encode()])

        talking = asyncio.gather(*map(talk, range(8)))
        for _ in range(8 * 400):
            peer, chunks = await soon(listener.receive())
            assert listener.user(peer) == users[int(bytes(chunks[0]))]
        await soon(talking)
        for channel in channels:
            channel.close()
        await listener.close()
        for network in (*theirs, ours):
            network.close()

    asyncio.run(within())


def test_a_transport_without_encryption_refuses_keys(keys: Path) -> None:
    class Clear(Transport):
        def listen(self, url: str, limits: Limits) -> Listener:
            raise AssertionError("it must not be asked")

        async def connect(self, url: str, limits: Limits) -> Channel:
            raise AssertionError("it must not be asked")

        def close(self) -> None:
            pass

    register("clear", Clear)
    refused = pytest.raises(EndpointError, match="clear:// has no encryption, and CURVE keys are given")
    with networks(keys / "server.toml", None) as (ours, _), refused:
        ours.listen("clear://127.0.0.1:1", LIMITS)


# --------------------------------------------------------------------------------------------- files


def test_a_secret_that_others_can_read_is_refused_with_the_fix(keys: Path) -> None:
    for name, load in (("server.toml", load_server_keys), ("trainer.toml", load_client_keys)):
        (keys / name).chmod(0o640)
        with pytest.raises(ConfigError, match=rf"can be read by others \(mode 0640\); `chmod go= .*{name}`"):
            load(keys / name)


def test_a_folder_of_clients_that_others_can_write_is_refused(keys: Path) -> None:
    (keys / "clients").chmod(0o777)
    with pytest.raises(ConfigError, match="may be written by others"):
        load_server_keys(keys / "server.toml")


def test_the_other_sides_file_is_refused_by_name(keys: Path) -> None:
    with pytest.raises(ConfigError, match="has the keys of a trainer, not of a server"):
        load_server_keys(keys / "trainer.toml")
    with pytest.raises(ConfigError, match="has the keys of a server, not of a client"):
        load_client_keys(keys / "server.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("public = 7", "public must be a key of 40 characters"),
        (f'public = "{"~" * 40}"', "public must be a key of 40 characters"),
        (f'public = "{"#" * 40}"', "public must be a key of 40 characters"),
        ("public = ", "is not TOML"),
        ("public = " + "9" * 5000, "is not TOML"),
        ("public = " + "[" * 5000, "is not TOML"),
        (f'public = "{"a" * 40}"\nstream = ["x"]', "there is no key 'stream' here"),
        (f'public = "{"a" * 40}"\nstreams = "x"', "write a list of streams"),
    ],
)
def test_a_file_in_the_folder_of_clients_that_makes_no_sense_stops_the_start(keys: Path, text: str, said: str) -> None:
    (keys / "clients/odd.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_server_keys(keys / "server.toml")


def test_a_file_that_goes_bad_while_the_server_runs_lets_nobody_in_and_is_said(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(listener: Listener, theirs: Network) -> None:
        channel = await soon(theirs.connect(listener.url, LIMITS))
        await greet(channel, listener)
        (keys / "clients/trainer.toml").write_text("public =")
        with pytest.raises(BrokenChannelError):
            await soon(channel.receive())
        channel.close()

    meet(keys / "server.toml", keys / "trainer.toml", act)
    assert "a file in the folder of clients lets nobody in" in caplog.text


def test_a_file_that_cannot_be_read_for_a_moment_lets_its_client_in_again_though_it_never_changed(
    keys: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (keys, keys / "clients"):
        folder.chmod(0o755)
    monkeypatch.chdir(keys)  # whatever lies above it is root's
    clients = ClientFolder(Path("clients"))
    (public,) = clients.clients()
    file = Path("clients/trainer.toml")
    file.write_text(file.read_text() + "\n")
    file.chmod(0o000)
    before = file.stat()
    with an_ordinary_user():
        wait_until(lambda: not clients.clients(), what="the change was seen")
    file.chmod(0o644)
    wait_until(lambda: set(clients.clients()) == {public}, what="the file was looked at again")
    assert (file.stat().st_mtime_ns, file.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert "trainer.toml cannot be read: Permission denied" in caplog.text


@contextmanager
def an_ordinary_user() -> Iterator[None]:
    """Be nobody where this is root, who may read everything."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


def test_secrets_are_private_not_shown_and_never_overwritten(keys: Path) -> None:
    for name in ("server.toml", "trainer.toml"):
        assert (keys / name).stat().st_mode & 0o777 == 0o600
    client = load_client_keys(keys / "trainer.toml")
    assert client.secret.decode() not in repr(client)
    with pytest.raises(ConfigError, match="keys are never overwritten"):
        make_server(keys)
    with pytest.raises(ConfigError, match="keys are never overwritten"):
        make_client(keys, "trainer", client.server.decode())
