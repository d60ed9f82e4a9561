"""Why a ZeroMQ connection ended, or never came to be, in words for the user."""

from __future__ import annotations

import asyncio
import contextlib

import zmq

from shardfeed_wire.curve import Keys, ServerKeys
from shardfeed_wire.endpoint import parse_endpoint

__all__ = ["ENDS", "why_no_handshake"]

ENDS = {
    zmq.Event.DISCONNECTED: "the connection was closed",
    zmq.Event.CLOSED: "nobody listens there",
    zmq.Event.CONNECT_RETRIED: "nobody listens there",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "what listens there does not speak ZeroMQ",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "what listens there does not speak ZeroMQ as we do",
    zmq.Event.HANDSHAKE_FAILED_AUTH: "the server does not let this client in",
}
"""What the socket monitor tells of a connection's end."""

_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)
_ASK_SECONDS = 2.0


async def why_no_handshake(url: str, event: zmq.Event, keys: Keys | None) -> str:
    """Say why a listener that was reached and we did not come together, as far as it can be told from here.

    Where two sides speak with and without CURVE, ZeroMQ says so only to the one that notices first; so
    the listener's greeting is read once more. Blocks for two seconds at most.
    """
    if event == zmq.Event.HANDSHAKE_FAILED_AUTH and keys is not None and not isinstance(keys, ServerKeys):
        return (
            f"the server does not let this client in: its key {keys.public.decode()}, of {keys.file}, is in no file of "
            "the server's folder of clients, or was taken out"
        )
    mechanism = None
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(_ASK_SECONDS):
            mechanism = await _mechanism(url)
    if keys is None and mechanism == b"CURVE":
        return "the server demands CURVE keys; pass a client's key file: curve=FILE, or --curve FILE"
    if keys is not None and mechanism == b"NULL":
        return "the server speaks without CURVE; start it with --curve, or leave the key file out here"
    if keys is not None and not isinstance(keys, ServerKeys) and mechanism == b"CURVE":
        return (
            f"the server ended the handshake: probably `server` in {keys.file} is not its public key, which is "
            "`public` in the file that the server was started with"
        )
    return "what listens there is not a shardfeed server" if event == zmq.Event.DISCONNECTED else ENDS[event]


async def _mechanism(url: str) -> bytes | None:
    """Return the security mechanism in a ZeroMQ listener's greeting (ZMTP 3, RFC 23); None where it is no such.

    It gets no more of ours than it needs to go on: at the wrong mechanism it would close at once.
    """
    endpoint = parse_endpoint(url)
    if endpoint.path:
        reader, writer = await asyncio.open_unix_connection(endpoint.path)
    else:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        writer.write(b"\xff" + bytes(8) + b"\x7f\x03\x00")
        greeting = await reader.readexactly(_GREETING_BYTES)
        return greeting[_MECHANISM].rstrip(b"\0") if greeting[0] == 0xFF and greeting[9] == 0x7F else None
    finally:
        writer.close()
