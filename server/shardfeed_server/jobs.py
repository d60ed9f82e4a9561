"""What the front process and its workers say to each other over a socket pair, and the memory they share."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import msgspec

from shardfeed_server.answer import Answer
from shardfeed_server.config import StreamConfig
from shardfeed_server.figures import Work
from shardfeed_wire.messages import Get, StreamInfo
from webdataset.manifest import Manifest
from webdataset.shards import ShardReader

__all__ = [
    "Asked",
    "Described",
    "Done",
    "Failed",
    "FromFront",
    "FromWorker",
    "Job",
    "Lost",
    "Progress",
    "Ready",
    "Release",
    "StreamSource",
    "decode_from_front",
    "decode_from_worker",
    "encode",
    "socket_pair",
]

_SOCKET_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StreamSource:
    """What a worker makes a stream of; it pickles. ``reader`` has looked at the shards already."""

    name: str
    config: StreamConfig
    manifest: Manifest
    reader: ShardReader
    code_dir: str | None


class _Said(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """A message between front and worker."""


class Job(_Said, frozen=True, kw_only=True):
    """Make an answer. ``block`` and ``index`` are the bytes of uint32 and uint16 arrays of shape (rows,).

    ``since`` is when the request came, in seconds of ``time.monotonic``. ``bad_rows`` are rows that
    killed or hung a worker before, and why they are not to be touched.
    """

    number: int
    get: Get
    block: bytes
    index: bytes
    since: float
    bad_rows: dict[int, str] = {}


class Asked(_Said, frozen=True, kw_only=True):
    """Describe a stream. ``bad_rows`` are as for a Job, of samples counted from the stream's first."""

    number: int
    stream: str
    bad_rows: dict[int, str] = {}


class Release(_Said, frozen=True, kw_only=True):
    """A slot's answer was sent; its memory is free."""

    slot: int


class Lost(_Said, frozen=True, kw_only=True):
    """The descriptor of a new slot did not arrive: the front has no such slot, and never will."""

    slot: int


class Ready(_Said, frozen=True, kw_only=True):
    """The worker has started."""


class Done(_Said, frozen=True, kw_only=True):
    """An answer lies in a slot. A slot's descriptor of ``new_size`` bytes comes along where that is not 0.

    ``work`` is what it took, for the front's figures.
    """

    number: int
    slot: int
    answer: Answer
    new_size: int
    dropped: tuple[int, ...]
    work: Work


class Described(_Said, frozen=True, kw_only=True):
    """What a stream is."""

    number: int
    info: StreamInfo


class Failed(_Said, frozen=True, kw_only=True):
    """There is no answer; ``reason`` is the protocol's word."""

    number: int
    reason: str
    message: str


FromFront: TypeAlias = Job | Asked | Release | Lost
FromWorker: TypeAlias = Ready | Done | Described | Failed

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_from_front = msgspec.msgpack.Decoder(FromFront).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep messages apart and carry descriptors."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    return pair


class Progress:
    """Which row of which job a worker is at, in memory that outlives it: so that the front knows what killed it."""

    _NOTE = struct.Struct("=Qq")
    BETWEEN = -1
    """The row where a worker is at no row in particular."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Make such memory, or map that of ``descriptor``, which the caller keeps."""
        self.descriptor = os.memfd_create("shardfeed-progress", os.MFD_CLOEXEC) if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, mmap.PAGESIZE)
        self._memory = mmap.mmap(self.descriptor, mmap.PAGESIZE)

    def note(self, job: int, row: int) -> None:
        """Say what is begun."""
        self._NOTE.pack_into(self._memory, 0, job, row)

    def of(self, job: int) -> Callable[[int], None]:
        """Return what says which row of a job is begun; it is called once a sample."""
        return partial(self._NOTE.pack_into, self._memory, 0, job)

    def read(self) -> tuple[int, int]:
        """Return (job, row)."""
        job, row = self._NOTE.unpack_from(self._memory, 0)
        return job, row

    def close(self) -> None:
        """Unmap and close."""
        self._memory.close()
        os.close(self.descriptor)
