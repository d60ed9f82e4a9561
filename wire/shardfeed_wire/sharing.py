"""Memory passed between processes of one machine: a Unix socket, its few messages, and the descriptors they bring.

A server that is on the client's machine lends the memory in which an answer lies instead of sending
it. `docs/protocol.md`, section 2, is the specification. Here is what both sides need: the socket's
name, the messages, and memory that nobody can shrink or write to from outside. For Linux alone.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Final, TypeAlias

import msgspec

from shardfeed_wire.errors import MessageError
from shardfeed_wire.messages import Seconds

__all__ = [
    "Attach",
    "Dropped",
    "FromBorrower",
    "FromLender",
    "Lent",
    "Release",
    "address",
    "decode_from_borrower",
    "decode_from_lender",
    "encode",
    "is_of_this_user",
    "is_sealed",
    "seal",
    "take",
]

MESSAGE_BYTES: Final = 4_096
_F_SEAL_FUTURE_WRITE: Final = 0x10  # fcntl does not name it before Python 3.13
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE
_CREDENTIALS: Final = struct.Struct("3i")


class _Said(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower):
    """A message on the Unix socket."""


class Attach(_Said, frozen=True, kw_only=True):
    """A client's first message: the token of its Welcome."""

    token: bytes


class Release(_Said, frozen=True, kw_only=True):
    """The client is done with the answer in a slot."""

    slot: int


class Lent(_Said, frozen=True, kw_only=True):
    """An answer, as one buffer in tenbin's framing, lies at ``start`` to ``end`` of a slot, until it is released.

    ``size`` is the slot's, and a descriptor comes along, where the client does not have it yet; else 0.
    ``request`` and ``seconds`` count instead of what the answer says, where it was made for another's request.
    """

    slot: int
    start: int
    end: int
    size: int = 0
    request: int | None = None
    seconds: Seconds | None = None


class Dropped(_Said, frozen=True, kw_only=True):
    """The slot will not be used again; what lies in it stays the client's until it releases that."""

    slot: int


FromBorrower: TypeAlias = Attach | Release
FromLender: TypeAlias = Lent | Dropped

encode = msgspec.msgpack.Encoder().encode
_from_borrower: msgspec.msgpack.Decoder[FromBorrower] = msgspec.msgpack.Decoder(FromBorrower)
_from_lender: msgspec.msgpack.Decoder[FromLender] = msgspec.msgpack.Decoder(FromLender)


def decode_from_borrower(message: bytes) -> FromBorrower:
    """Return what a client says. Raises MessageError for anything else."""
    try:
        return _from_borrower.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"nothing that a borrower of memory says: {error}") from error


def decode_from_lender(message: bytes) -> FromLender:
    """Return what a server says. Raises MessageError for anything else."""
    try:
        return _from_lender.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"nothing that a lender of memory says: {error}") from error


def address(name: str) -> str:
    """Return the address of a name in Linux's abstract namespace: no file, and gone with the last descriptor."""
    return f"\0{name}"


def is_of_this_user(connection: socket.socket) -> bool:
    """Whether the process at the other end runs as the user of this one: who could read its memory anyway."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    return bool(user == os.geteuid())


def take(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next message and the descriptors that came with it, at most one; no bytes at the end.

    Raises OSError: BlockingIOError where there is none yet.
    """
    message, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    return message, descriptors


def seal(descriptor: int) -> None:
    """Fix the size of a memfd for ever, and let nobody map or write it who does not have it mapped yet."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)


def is_sealed(descriptor: int) -> bool:
    """Whether memory is a memfd that was sealed so: touching it can never be a bus error."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # no memfd
        return False
