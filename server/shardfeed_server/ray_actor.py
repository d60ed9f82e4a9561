"""One loader server on Ray: an actor that hosts it, and is restarted by Ray when it or its node dies."""

from __future__ import annotations

import logging
import os
import threading
import time

import msgspec
import ray

from shardfeed_server.config import ServerConfig
from shardfeed_server.hosted import HostedServer

__all__ = ["LoaderServer", "Placement", "State", "server_endpoint"]

_STOP_SECONDS = 40.0

log = logging.getLogger("shardfeed.server")


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """What Ray is to set aside for each server: ``cpus``, its workers; and one unit of ``resource``, where given."""

    cpus: int
    resource: str | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How one server is. ``node`` is Ray's identifier of its node, ``since`` the Unix time of its start."""

    node: str
    address: str
    endpoints: tuple[str, ...]
    http: str | None
    streams: tuple[str, ...]
    samples: int
    workers: int
    pid: int
    since: float


def server_endpoint(address: str) -> str:
    """Return the endpoint that a server binds on a node with this IP address, at a free port."""
    return f"tcp://[{address}]:0" if ":" in address else f"tcp://{address}:0"


class LoaderServer:
    """The actor. What passes between it and others is bytes, MessagePack, so that nothing is unpickled but those."""

    def __init__(self, config: bytes, placement: bytes) -> None:
        """Start a server on this node's address and return when it is ready. An error ends the actor for good."""
        self._given = config, placement
        address = ray.util.get_node_ip_address()
        wanted = msgspec.structs.replace(
            msgspec.msgpack.decode(config, type=ServerConfig),
            bind=(server_endpoint(address),),
            workers=msgspec.msgpack.decode(placement, type=Placement).cpus,
        )
        self._server = HostedServer(wanted)
        hosted = self._server.hosted
        self._state = State(
            node=ray.get_runtime_context().get_node_id(),
            address=address,
            endpoints=hosted.endpoints,
            http=hosted.http,
            streams=hosted.streams,
            samples=hosted.samples,
            workers=hosted.workers,
            pid=self._server.pid,
            since=time.time(),
        )
        threading.Thread(target=self._watch, name="shardfeed-watch", daemon=True).start()

    def endpoints(self) -> list[str]:
        """Return where the server listens."""
        return list(self._state.endpoints)

    def state(self) -> bytes:
        """Return its `State`."""
        return msgspec.msgpack.encode(self._state)

    def given(self) -> tuple[bytes, bytes]:
        """Return what this actor was made from, so that more can be made like it."""
        return self._given

    def stop(self) -> None:
        """Let the server answer what is under way and end. Blocks for some seconds."""
        self._server.stop(_STOP_SECONDS)

    def _watch(self) -> None:
        """End the actor when its server ends by itself: Ray then makes a new one."""
        last_words = self._server.wait()
        if last_words is not None:
            log.error("the loader server ended, so its actor ends and is restarted:\n%s", last_words)
            os._exit(1)
