"""One message over a pysctp socket: what plain streams and the documented ``tenbin.sctp_send`` are made of."""

from __future__ import annotations

import errno
import socket as sockets
from typing import Any

from shardfeed_wire.errors import ConfigError, TenbinError
from shardfeed_wire.sctp_sockets import MSG_NOTIFICATION

__all__ = ["receive_message", "send_message"]

_PART = 1 << 20


def send_message(socket: Any, dest: tuple[str, int], message: bytes) -> None:
    """Send bytes as one SCTP message. Blocks as the socket does.

    :param socket: of pysctp, one-to-one or one-to-many; ``dest``: host and port.
    :raises ConfigError: the message is larger than the socket's send buffer; how to raise that is said.
    """
    try:
        socket.sctp_send(message, to=dest)
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        room = socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF)
        raise ConfigError(
            f"a message of {len(message)} bytes is larger than the SCTP socket's send buffer of {room}: "
            f"set SO_SNDBUF of the socket above that, and net.core.wmem_max before it "
            f"(sysctl -w net.core.wmem_max={len(message)})"
        ) from error


def receive_message(socket: Any, maxsize: int) -> bytearray:
    """Receive one SCTP message. Blocks as the socket does.

    :param socket: of pysctp. One-to-one and listening: a connection is accepted, and closed again, and one
        that ends without a message is passed over; one-to-many, or connected: the next message is taken.
    :param maxsize: bytes that a message may have.
    :raises TenbinError: the message is larger, or the association ended before its end.
    """
    is_stream = socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_TYPE) == sockets.SOCK_STREAM
    if not is_stream or not socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_ACCEPTCONN):
        return _whole(_receive_parts(socket, maxsize))
    while True:
        client, _ = socket.accept()
        try:
            message, ended = _receive_parts(client, maxsize)
            if message or not ended:
                return _whole((message, ended))
        finally:
            client.close()


def _whole(received: tuple[bytearray, bool]) -> bytearray:
    message, ended = received
    if ended:
        raise TenbinError(f"the SCTP association ended after {len(message)} bytes of a message")
    return message


def _receive_parts(socket: Any, maxsize: int) -> tuple[bytearray, bool]:
    """Put a message together: Linux gives a large one in parts, the last of them flagged.

    Returns it, and whether the association ended before its end.
    """
    message = bytearray()
    sender = None
    while True:
        address, flags, part, _ = socket.sctp_recv(min(_PART, maxsize + 1 - len(message)))
        if flags & MSG_NOTIFICATION:
            continue
        if message and address != sender:  # one-to-many: who sent the beginning went away in the middle
            message.clear()
        sender = address
        message += part
        if len(message) > maxsize:
            raise TenbinError(f"an SCTP message has more than maxsize = {maxsize} bytes")
        if flags & sockets.MSG_EOR:
            return message, False
        if not part:
            return message, True
