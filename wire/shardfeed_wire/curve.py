"""CURVE keys: what a server and a client know of each other, and the TOML files that hold it.

A server's file has its key pair and names a folder with one file for each client that it lets in: the
client's public key and, where it may not read every stream, the streams that it may. A client's file
has its key pair and the server's public key. Keys are written in Z85, 40 characters, as ZeroMQ does.
`docs/security.md` describes the files.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from zmq.utils import z85

from shardfeed_wire.complaints import Complaints
from shardfeed_wire.errors import ConfigError

__all__ = [
    "KEY_CHARACTERS",
    "Client",
    "ClientFolder",
    "ClientKeys",
    "Keys",
    "ServerKeys",
    "is_key",
    "load_client_keys",
    "load_server_keys",
]

KEY_CHARACTERS = 40
_LOOK_SECONDS = 1.0
"""How long a change in the folder of clients may go unseen."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client that is let in: its name, which is its file's, and the streams it may read; None for every one."""

    name: str
    streams: frozenset[str] | None = None


class ClientFolder:
    """The clients that a server lets in: ``NAME.toml`` each, read again while the server runs."""

    def __init__(self, folder: Path) -> None:
        """Read the folder. Raises ConfigError where that fails or a file in it makes no sense."""
        self.path = folder
        self._files: dict[str, tuple[tuple[int, int, int], tuple[str, Client] | None]] = {}
        self._clients: dict[str, Client] = {}
        self._looked = 0.0
        self._complaints = Complaints()
        _check_private(folder, "folder", stat.S_IWOTH | stat.S_IWGRP, "may be written")
        self._read(strict=True)

    def clients(self) -> Mapping[str, Client]:
        """Return the clients by public key, as the folder has them now or had them a second ago. Blocks on the folder.

        A file that makes no sense by now lets nobody in; it is said in the log.
        """
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            try:
                self._read(strict=False)
            except OSError as error:
                self._clients = {}
                self._complaints.say("folder", f"the folder of clients {self.path} cannot be read: {error}")
        return self._clients

    def may_read(self, public: str | None, stream: str) -> bool:
        """Say whether the client with this public key is let in and may read a stream. Blocks as `clients` does."""
        client = self.clients().get(public or "")
        return client is not None and (client.streams is None or stream in client.streams)

    def _read(self, *, strict: bool) -> None:
        files: dict[str, tuple[tuple[int, int, int], tuple[str, Client] | None]] = {}
        try:
            entries = sorted(self.path.iterdir())
        except OSError as error:
            if strict:
                raise ConfigError(
                    f"the folder of clients {self.path} cannot be read: {error.strerror}; make keys with "
                    "`shardfeed keygen`"
                ) from error
            raise
        for entry in entries:
            if entry.suffix != ".toml" or entry.name.startswith("."):
                continue
            try:
                facts = entry.stat()
                seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
                if (known := self._files.get(entry.name)) is not None and known[0] == seen:
                    files[entry.name] = known
                    continue
                files[entry.name] = (seen, None)
                files[entry.name] = (seen, _read_client(entry))
            except FileNotFoundError:
                continue  # it went meanwhile
            except (ConfigError, OSError) as error:
                if strict:
                    raise
                if isinstance(error.__cause__ or error, OSError):
                    files.pop(entry.name, None)  # the file may be as it should, so the next look tries again
                self._complaints.say(entry.name, f"a file in the folder of clients lets nobody in: {error}")
        self._files = files
        self._clients = dict(client for _, client in files.values() if client is not None)
        self._looked = time.monotonic()


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """A server's key pair, and the clients that it lets in."""

    public: bytes
    secret: bytes = field(repr=False)
    clients: ClientFolder


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """A client's key pair, the public key of the server, and the file they are from."""

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes
    file: str


Keys: TypeAlias = ServerKeys | ClientKeys


def load_server_keys(path: str | os.PathLike[str]) -> ServerKeys:
    """Read a server's key file and its folder of clients. Blocks.

    Raises ConfigError where either cannot be read, makes no sense, or is open to others.
    """
    file = Path(path)
    table = _read_secret_file(file)
    if "clients" not in table:
        raise ConfigError(_of_the_other_side(file, table, "server", "clients", 'clients = "clients"'))
    folder = table["clients"]
    if not isinstance(folder, str):
        raise ConfigError(f'{file}: clients is {folder!r}; write the folder of clients, such as clients = "clients"')
    _check_keys(file, table, {"public", "secret", "clients"})
    return ServerKeys(_key(file, table, "public"), _key(file, table, "secret"), ClientFolder(file.parent / folder))


def load_client_keys(path: str | os.PathLike[str]) -> ClientKeys:
    """Read a client's key file. Blocks.

    Raises ConfigError where it cannot be read, makes no sense, or is open to others.
    """
    file = Path(path)
    table = _read_secret_file(file)
    if "server" not in table:
        raise ConfigError(_of_the_other_side(file, table, "client", "server", "server = the server's public key"))
    _check_keys(file, table, {"public", "secret", "server"})
    public, secret, server = (_key(file, table, name) for name in ("public", "secret", "server"))
    return ClientKeys(public, secret, server, os.fspath(path))


def _of_the_other_side(file: Path, table: Mapping[str, Any], side: str, missing: str, write: str) -> str:
    others = {"server": "trainer", "client": "server"}
    if {"server", "clients"} & table.keys():
        return f"{file} has the keys of a {others[side]}, not of a {side}; name the {side}'s file"
    return f"{file}: the key {missing!r} is missing; write {write}, or make the file with `shardfeed keygen`"


def _read_secret_file(file: Path) -> dict[str, Any]:
    table = _read_table(file)
    _check_private(file, "secret key", stat.S_IRWXO | stat.S_IRWXG, "can be read")
    return table


def _check_private(path: Path, what: str, forbidden: int, danger: str) -> None:
    """Refuse what others may read or write; the group counts only where the file is our own, as for PostgreSQL."""
    try:
        facts = path.stat()
    except OSError as error:
        raise ConfigError(
            f"the {what} {path} cannot be read: {error.strerror}; make keys with `shardfeed keygen`"
        ) from error
    if facts.st_uid != os.geteuid():
        forbidden &= ~stat.S_IRWXG
    if facts.st_mode & forbidden:
        fix = "go-w" if what == "folder" else "go="
        raise ConfigError(
            f"the {what} {path} {danger} by others (mode {stat.S_IMODE(facts.st_mode):04o}); "
            f"`chmod {fix} {path}`, and make new keys if somebody may have"
        )


def _read_client(file: Path) -> tuple[str, Client]:
    table = _read_table(file)
    _check_keys(file, table, {"public", "streams"})
    streams = table.get("streams")
    if streams is not None and not (isinstance(streams, list) and all(isinstance(name, str) for name in streams)):
        raise ConfigError(f'{file}: streams is {streams!r}; write a list of streams, such as ["train"]')
    client = Client(file.stem, None if streams is None else frozenset(streams))
    return _key(file, table, "public").decode(), client


def _read_table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8").removeprefix("\ufeff"))  # which some editors put there
    except FileNotFoundError as error:
        raise ConfigError(f"there is no key file {file}; make keys with `shardfeed keygen`") from error
    except OSError as error:
        raise ConfigError(f"the key file {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not each is a TOMLDecodeError
        raise ConfigError(f"the key file {file} is not TOML: {error}") from error


def _check_keys(file: Path, table: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(table.keys() - known):
        raise ConfigError(f"{file}: there is no key {unknown[0]!r} here; known are {', '.join(sorted(known))}")


def is_key(value: object) -> TypeGuard[str]:
    """Say whether it is a key as Z85 writes it."""
    if isinstance(value, str) and len(value) == KEY_CHARACTERS:
        with contextlib.suppress(KeyError, UnicodeEncodeError, struct.error):
            z85.decode(value.encode("ascii"))
            return True
    return False


def _key(file: Path, table: Mapping[str, Any], name: str) -> bytes:
    value = table.get(name)
    if is_key(value):
        return value.encode("ascii")
    raise ConfigError(f"{file}: {name} must be a key of {KEY_CHARACTERS} characters, as `shardfeed keygen` writes it")
