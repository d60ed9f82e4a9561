"""Who may come in: ZeroMQ asks about every client that presents a CURVE key, and the event loop answers at once."""

from __future__ import annotations

import asyncio
import contextlib

import zmq
from zmq.utils import z85

from shardfeed_wire.complaints import Complaints
from shardfeed_wire.curve import ClientFolder

__all__ = ["Doorkeeper"]

_ADDRESS = "inproc://zeromq.zap.01"
_VERSION = b"1.0"


class Doorkeeper:
    """Answers ZeroMQ's authentication requests (ZAP, RFC 27) of one context, in the running event loop."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], clients: ClientFolder) -> None:
        """Begin to answer. It must stand before the first socket is bound."""
        self._clients, self._complaints = clients, Complaints()
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ADDRESS)
        self._loop = asyncio.get_running_loop()
        descriptor = self._socket.getsockopt(zmq.FD)
        assert isinstance(descriptor, int)
        self._descriptor = descriptor
        self._loop.add_reader(descriptor, self._answer)
        self._answer()  # the descriptor tells of nothing before somebody has looked

    def close(self) -> None:
        """Answer no more."""
        self._loop.remove_reader(self._descriptor)
        self._socket.close()

    def _answer(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:  # the descriptor says only that something changed
                self._socket.send_multipart(self._decide(self._socket.recv_multipart(zmq.NOBLOCK)))

    def _decide(self, asked: list[bytes]) -> list[bytes]:
        request, address, mechanism = asked[1], asked[3].decode("utf-8", "replace"), asked[5]
        key = z85.encode(asked[6]).decode() if mechanism == b"CURVE" and len(asked) == 7 else ""
        if key and key in self._clients.clients():
            return [_VERSION, request, b"200", b"OK", key.encode(), b""]
        self._complaints.say(
            "unknown",
            f"refused a client from {address}: its key {key or 'is none'} is in no file of {self._clients.path}",
        )
        return [_VERSION, request, b"400", b"unknown key", b"", b""]
