"""Binary tensor encodings for PyTorch and NumPy: the documented ``tenbin`` module.

The format, and its codec for buffers and lists of chunks, are ``shardfeed_wire.tenbin``'s; here are
files, streams, and the convenience functions for ZeroMQ and SCTP sockets. Files end with ``.ten``.
Whatever is malformed is a ``TenbinError``, which is a ValueError.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from struct import Struct
from typing import Any, Protocol

from shardfeed_wire.errors import ConfigError, TenbinError
from shardfeed_wire.sctp_message import receive_message, send_message
from shardfeed_wire.tenbin import (
    ALIGNMENT,
    MAGIC,
    Infos,
    decode_buffer,
    decode_list,
    encode_buffer,
    encode_list,
    frame_chunk,
)
from webdataset.tarsource import ReadsBytes
from webdataset.wholefile import WholeFile

__all__ = [
    "decode_buffer",
    "decode_list",
    "encode_buffer",
    "encode_list",
    "load",
    "read",
    "save",
    "sctp_recv",
    "sctp_send",
    "write",
    "zrecv_multipart",
    "zrecv_single",
    "zsend_multipart",
    "zsend_single",
]


_FRAME = Struct("<8sq")
_PIECE = 1 << 20


class _WritesBytes(Protocol):
    """A binary stream to write to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Write all of the bytes; may block."""


def write(stream: _WritesBytes, l: Iterable[Any], infos: Sequence[str] | None = None) -> None:  # noqa: E741 - documented
    """Write a list of arrays to a stream, with magics, length, and padding. Blocks.

    :param l: arrays or tensors, and ``infos``: their names, as ``encode_list`` takes them.
    :raises TenbinError: one cannot be encoded; nothing was written.
    """
    for chunk in encode_list(l, infos):
        for part in frame_chunk(chunk):
            stream.write(part)


def read(stream: ReadsBytes, n: int = 999999, infos: Infos = False) -> Any:
    """Read a list of at most ``n`` arrays from a stream, with magics, length, and padding. Blocks.

    :param infos: False, True or names to check against; see ``decode_list``.
    :returns: writable arrays; with ``infos=True``, they and their names.
    :raises TenbinError: malformed, or the stream ends inside an array. Memory is taken as bytes
        arrive, not as they are claimed.
    """
    chunks: list[bytearray] = []
    for _ in range(n):
        header = _read_chunk(stream)
        if header is None:
            break
        data = _read_chunk(stream)
        if data is None:
            raise TenbinError("the stream ends between an array's header and its data")
        chunks += [header, data]
    return decode_list(chunks, infos)


def save(fname: str | os.PathLike[str], *args: Any, infos: Sequence[str] | None = None, nocheck: bool = False) -> None:
    """Save arrays to a file, with magics, length, and padding. Blocks. The file appears when it is whole.

    :param fname: ends with ``.ten``, unless ``nocheck``.
    :param args: arrays or tensors, and ``infos``: their names, as ``encode_list`` takes them.
    :raises ConfigError: the name does not end with ``.ten``.
    :raises TenbinError: an array cannot be encoded.
    :raises OSError: the file cannot be written.
    """
    _check_name(fname, nocheck)
    chunks = encode_list(args, infos)
    with WholeFile(fname) as file:
        for chunk in chunks:
            file.stream.writelines(frame_chunk(chunk))


def load(fname: str | os.PathLike[str], infos: Infos = False, nocheck: bool = False) -> Any:
    """Read a list of arrays from a file, with magics, length, and padding. Blocks.

    :param fname: ends with ``.ten``, unless ``nocheck``.
    :param infos: False, True or names to check against; see ``decode_list``.
    :returns: writable arrays; with ``infos=True``, they and their names.
    :raises ConfigError: the name does not end with ``.ten``.
    :raises TenbinError: the file is malformed; it is named.
    :raises OSError: it cannot be read.
    """
    _check_name(fname, nocheck)
    with Path(fname).open("rb") as stream:
        try:
            return read(stream, infos=infos)
        except TenbinError as error:
            raise TenbinError(f"{fname}: {error}") from error


def zsend_single(socket: Any, l: Iterable[Any], infos: Sequence[str] | None = None) -> Any:  # noqa: E741 - documented
    """Send arrays as a single part ZMQ message: the buffer of ``encode_buffer``. Blocks as the socket does.

    :param l: arrays or tensors, and ``infos``: their names, as ``encode_list`` takes them.
    :raises TenbinError: one cannot be encoded.
    """
    return socket.send(encode_buffer(l, infos))


def zrecv_single(socket: Any, infos: Infos = False) -> Any:
    """Receive arrays as a single part ZMQ message. Blocks as the socket does.

    :param infos: False, True or names to check against; see ``decode_list``.
    :returns: little-endian arrays, read-only views of the message; with ``infos=True``, they and their names.
    :raises TenbinError: the message is not tenbin, or has other names than ``infos``.
    """
    return decode_buffer(socket.recv(), infos)


def zsend_multipart(socket: Any, l: Iterable[Any], infos: Sequence[str] | None = None) -> Any:  # noqa: E741 - documented
    """Send arrays as a multipart ZMQ message: the chunks of ``encode_list``, a part each. Blocks as the socket does.

    :param l: at least one array or tensor, and ``infos``: their names, as ``encode_list`` takes them.
    :raises TenbinError: one cannot be encoded, or there is none: ZeroMQ has no message of no parts.
    """
    chunks = encode_list(l, infos)
    if not chunks:
        raise TenbinError("a multipart ZMQ message needs at least one array: send an empty one, or zsend_single")
    return socket.send_multipart(chunks)


def zrecv_multipart(socket: Any, infos: Infos = False) -> Any:
    """Receive arrays as a multipart ZMQ message. Blocks as the socket does.

    :param infos: False, True or names to check against; see ``decode_list``.
    :returns: little-endian arrays, read-only views of the parts; with ``infos=True``, they and their names.
    :raises TenbinError: the message is not tenbin, or has other names than ``infos``.
    """
    return decode_list(socket.recv_multipart(), infos)


def sctp_send(socket: Any, dest: tuple[str, int], l: Iterable[Any], infos: Sequence[str] | None = None) -> None:  # noqa: E741
    """Send arrays as an SCTP datagram. Blocks as the socket does.

    This is just a convenience function and illustration. For more complex networking needs, you may
    want to call ``encode_buffer`` and the socket's ``sctp_send`` directly.

    :param socket: of pysctp, one-to-one or one-to-many.
    :param dest: host and port.
    :param l: arrays or tensors, and ``infos``: their names, as ``encode_list`` takes them.
    :raises TenbinError: one cannot be encoded.
    :raises ConfigError: the message is larger than the socket's send buffer; how to raise that is said.
    """
    send_message(socket, dest, encode_buffer(l, infos))


def sctp_recv(socket: Any, infos: Infos = False, maxsize: int = 100000000) -> Any:
    """Receive arrays as an SCTP datagram. Blocks as the socket does.

    This is just a convenience function and illustration. For more complex networking needs, you may
    want to call the socket's ``sctp_recv`` and ``decode_buffer`` directly.

    :param socket: of pysctp. One-to-one and listening: a connection is accepted, and closed again;
        one-to-many, or connected: the next message is taken.
    :param infos: False, True or names to check against; see ``decode_list``.
    :param maxsize: bytes that a message may have.
    :returns: little-endian arrays, writable; with ``infos=True``, they and their names.
    :raises TenbinError: the message is not tenbin, larger, ends early, or has other names than ``infos``.
    """
    return decode_buffer(receive_message(socket, maxsize), infos)


def _check_name(fname: str | os.PathLike[str], nocheck: bool) -> None:
    if not nocheck and not os.fspath(fname).endswith(".ten"):
        raise ConfigError(f"{os.fspath(fname)!r} does not end with .ten: rename it, or pass nocheck=True")


def _read_chunk(stream: ReadsBytes) -> bytearray | None:
    """Read one framed chunk, or None at the end of the stream."""
    start = _read_exactly(stream, _FRAME.size, may_end=True)
    if start is None:
        return None
    magic, size = _FRAME.unpack(start)
    if magic != MAGIC:
        raise TenbinError(f"no chunk starts here: found {magic!r}, not {MAGIC!r}")
    if size < 0:
        raise TenbinError(f"a chunk has the negative length {size}")
    data = _read_exactly(stream, size)
    padding = _read_exactly(stream, -size % ALIGNMENT)
    if padding is not None and any(padding):
        raise TenbinError("the padding of a chunk is not zero")
    return data


def _read_exactly(stream: ReadsBytes, size: int, *, may_end: bool = False) -> bytearray | None:
    data = bytearray()
    while len(data) < size:
        part = stream.read(min(size - len(data), _PIECE))
        if not part:
            if may_end and not data:
                return None
            raise TenbinError(f"the stream ends after {len(data)} of {size} bytes of a chunk")
        data += part
    return data
