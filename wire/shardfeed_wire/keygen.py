"""New CURVE keys, written to the files that `curve` reads: secrets for their owner alone, and nothing overwritten."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq

from shardfeed_wire.curve import KEY_CHARACTERS, is_key
from shardfeed_wire.errors import ConfigError

__all__ = ["Made", "make_client", "make_server"]

_SERVER = """\
# A shardfeed server's CURVE keys, the same on all servers of a stream. Who has this file can pose as the server.
public = "{public}"
secret = "{secret}"
clients = "clients"  # the folder of the clients that are let in, a file each; read again while the server runs
"""
_CLIENT = """\
# A shardfeed trainer's CURVE keys. Who has this file can read what this trainer may read.
public = "{public}"
secret = "{secret}"
server = "{server}"  # the server's public key
"""
_ALLOWED = """\
# A client that is let in. Without `streams` it may read every stream.
public = "{public}"
{streams}
"""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, slots=True)
class Made:
    """A new client: its own file, and what the server must have of it, in ``allowed`` and as ``text``."""

    file: Path
    allowed: Path | None
    text: str


def make_server(folder: Path) -> Path:
    """Make a server's keys and its empty folder of clients in ``folder``, and return the file. Blocks on it.

    Raises ConfigError where there is one already, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=stat.S_IRWXU)
        (folder / "clients").mkdir(exist_ok=True, mode=stat.S_IRWXU)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from error
    public, secret = _pair()
    return _write(folder / "server.toml", _SERVER.format(public=public, secret=secret), private=True)


def make_client(
    folder: Path, name: str, server: str, *, streams: Sequence[str] = (), allowed: Path | None = None
) -> Made:
    """Make a client's keys in ``folder``, for servers with the public key ``server``; let it in where ``allowed`` is.

    ``streams`` are those it may read, every one where there are none; ``allowed`` is a server's folder of
    clients. Raises ConfigError for a name or key that is none, and where a file exists already.
    """
    if not _NAME.fullmatch(name) or name == "server":
        raise ConfigError(f"{name!r} is no name for a client; write letters, digits, _ . and -, and not 'server'")
    if not is_key(server):
        raise ConfigError(
            f"{server!r} is no server's public key; give the {KEY_CHARACTERS} characters of `public` in its "
            "server.toml, in quotes for the shell"
        )
    public, secret = _pair()
    listed = ", ".join(json.dumps(stream, ensure_ascii=False) for stream in streams)
    text = _ALLOWED.format(public=public, streams=f"streams = [{listed}]" if streams else '# streams = ["train"]')
    entry = None if allowed is None else _write(allowed / f"{name}.toml", text, private=False)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=stat.S_IRWXU)
        file = _write(
            folder / f"{name}.toml", _CLIENT.format(public=public, secret=secret, server=server), private=True
        )
    except (OSError, ConfigError):
        if entry is not None:
            entry.unlink()
        raise
    return Made(file, entry, text)


def _pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def _write(file: Path, text: str, *, private: bool) -> Path:
    mode = stat.S_IRUSR | stat.S_IWUSR
    if not private:
        mode |= stat.S_IRGRP | stat.S_IROTH
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ConfigError(f"{file} exists; keys are never overwritten: remove it, or choose another name") from error
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
    return file
