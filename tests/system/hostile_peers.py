"""Peers that mean harm, each a function that goes on until it is cut off; as a program, all of them at once.

They speak ZeroMQ's protocol (ZMTP 3.0) over plain sockets, for libzmq itself would not send such things.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable

import msgspec
import numpy as np

from shardfeed_wire.messages import PROTOCOL_VERSION, Get, Hello, Message, pack

MOST_BYTES = 4 << 30
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"


def connect(port: int, buffer: int | None = None) -> socket.socket:
    """A connection past ZeroMQ's handshake, as a DEALER; ``buffer`` bounds what its kernel takes unread."""
    peer = socket.socket()
    if buffer is not None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    peer.settimeout(20)
    peer.connect(("127.0.0.1", port))
    peer.sendall(GREETING + b"\x04" + bytes([len(READY)]) + READY)
    received = b""
    while len(received) < len(GREETING) + 2 or len(received) < len(GREETING) + 2 + received[len(GREETING) + 1]:
        received += peer.recv(4096)
    return peer


def frame(data: bytes, more: bool) -> bytes:
    return struct.pack(">BQ", 2 | more, len(data)) + data


def framed(message: Message, *tensors: np.ndarray) -> bytes:
    return in_frames([bytes(chunk) for chunk in pack(message, list(tensors))])


def in_frames(chunks: list[bytes]) -> bytes:
    return b"".join(frame(chunk, number + 1 < len(chunks)) for number, chunk in enumerate(chunks))


def send_until_cut_off(peer: socket.socket, data: bytes, most: int = MOST_BYTES) -> int:
    """Send the same bytes again and again, without reading; give how many were sent before the other side hung up."""
    sent = 0
    with contextlib.suppress(ConnectionError, TimeoutError):
        while sent < most:
            peer.sendall(data)
            sent += len(data)
    return sent


def drained(peer: socket.socket) -> None:
    """Read what comes until the other side hangs up, or this one closes the socket."""
    with contextlib.suppress(OSError):
        while peer.recv(1 << 16):
            pass


def endless_frames(port: int, size: int = 1 << 20) -> int:
    with connect(port) as peer:
        return send_until_cut_off(peer, frame(bytes(size), more=True) * max(1, (1 << 20) // (size + 9)))


def garbage(port: int) -> int:
    with connect(port) as peer:
        return send_until_cut_off(peer, frame(b"\xff" * 1000, more=False) * 100)


def hellos(port: int, read: bool = True) -> int:
    with connect(port) as peer:
        reader = threading.Thread(target=drained, args=(peer,))
        if read:
            reader.start()
        sent = send_until_cut_off(peer, framed(Hello(version=PROTOCOL_VERSION, job="flood")) * 100)
        peer.close()
        if read:
            reader.join()
        return sent


def half_messages(port: int) -> int:
    """Half a frame, and then nothing; over and over."""
    with connect(port) as peer:
        peer.sendall(frame(bytes(1000), more=False)[:500])
        return 500


def gets_unread(port: int, get: Get, count: int = 2_000, job: str = "never reads") -> socket.socket:
    """Ask for many answers, each of its own, and read none; the connection is the caller's to close."""
    peer = connect(port)
    peer.sendall(framed(Hello(version=PROTOCOL_VERSION, job=job)))
    seed = int.from_bytes(job.encode()) % (1 << 64)  # equal requests of others would share its answers
    rows = np.zeros(64, np.uint32), np.zeros(64, np.uint16)
    peer.settimeout(5)
    with contextlib.suppress(ConnectionError, TimeoutError):
        for number in range(count):
            peer.sendall(framed(msgspec.structs.replace(get, request=number, seed=seed, epoch=number), *rows))
    return peer


def _forever(attack: Callable[[int], object], port: int) -> None:
    for _ in itertools.count():
        with contextlib.suppress(OSError, IndexError):
            attack(port)


if __name__ == "__main__":
    os.nice(19)  # they come from other machines: what they cost is what they cost the server
    for each in (endless_frames, garbage, hellos, half_messages):
        threading.Thread(target=_forever, args=(each, int(sys.argv[1])), daemon=True).start()
    print("attacking", flush=True)
    sys.stdin.read()  # until whoever started this closes it
