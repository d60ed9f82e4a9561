"""Ask one server what it is, without iterating anything."""

from __future__ import annotations

import asyncio
import os
import socket

from shardfeed.addresses import resolve
from shardfeed_wire.curve import ClientKeys, load_client_keys
from shardfeed_wire.errors import (
    BrokenChannelError,
    ConnectError,
    MessageError,
    RefusedError,
    VersionMismatchError,
)
from shardfeed_wire.messages import PROTOCOL_VERSION, Hello, Refused, Welcome, pack, unpack
from shardfeed_wire.transport import Limits, Network

__all__ = ["ask_server"]

_LIMITS = Limits(frame_bytes=64 << 20, frames=64)
_NOT_YET = ("indexing", "draining", "busy")


def ask_server(url: str, *, timeout: float = 10.0, curve: str | os.PathLike[str] | None = None) -> Welcome:
    """Return what the server at ``url`` says of itself: its name, version, workers and streams.

    Blocks for up to ``timeout`` seconds, in an event loop of its own; so not to be called from a
    coroutine. ``curve`` is a client's key file, for a server with CURVE. A name with several addresses
    is asked at the first. Raises EndpointError where the URL is none, ConnectError where nobody answers
    in time or the server is not ready yet, RefusedError where what listens is not a shardfeed server or
    refuses, VersionMismatchError where it speaks another version of the protocol, and ConfigError for a
    key file that is none.
    """
    return asyncio.run(_ask_within(url, timeout, None if curve is None else load_client_keys(curve)))


async def _ask_within(url: str, timeout: float, keys: ClientKeys | None) -> Welcome:
    network = Network(keys)
    try:
        async with asyncio.timeout(timeout):
            return await _ask(url, network)
    except TimeoutError as error:
        if isinstance(error, ConnectError):
            raise
        raise ConnectError(
            f"{url}: no answer within {timeout:g} s; is the address right, and is it a shardfeed server?"
        ) from None
    except BrokenChannelError as error:
        raise ConnectError(f"{error}; start a server there with `shardfeed serve`, or correct the address") from error
    except MessageError as error:
        raise RefusedError(f"{url}: what listens there is not a shardfeed server ({error})") from error
    finally:
        network.close()


async def _ask(url: str, network: Network) -> Welcome:
    address = (await resolve([url]))[0]
    channel = await network.connect(address, _LIMITS)
    try:
        job = f"inquiry-{socket.gethostname()}-{os.getpid()}"
        await channel.send(pack(Hello(version=PROTOCOL_VERSION, job=job, software="shardfeed inquiry")))
        message, _ = unpack(await channel.receive())
    finally:
        channel.close()
    match message:
        case Welcome(version=version) if abs(version - PROTOCOL_VERSION) > 1:
            raise VersionMismatchError(
                f"{url} speaks version {version} of the protocol ({message.software}), this command version "
                f"{PROTOCOL_VERSION}; versions may differ by one: upgrade the older side"
            )
        case Welcome():
            return message
        case Refused(reason="version_differs"):
            raise VersionMismatchError(f"{url}: {message.message}")
        case Refused(reason=reason) if reason in _NOT_YET:
            raise ConnectError(f"{url} is not ready: {message.message}; ask again later")
        case Refused():
            raise RefusedError(f"{url}: {message.message}")
        case _:
            raise MessageError(f"it answers Hello with {type(message).__name__}")
