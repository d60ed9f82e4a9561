"""SCTP sockets as Linux gives them, through Python's own `socket`: addresses, options, and what an error means.

What `socket` has no words for are socket options with packed structures, those of RFC 6458 and of
Linux's ``<linux/sctp.h>``. So the transport needs no package.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from struct import Struct

from shardfeed_wire.endpoint import Endpoint
from shardfeed_wire.errors import EndpointError

__all__ = [
    "ANCILLARY_BYTES",
    "MSG_NOTIFICATION",
    "STREAMS",
    "Address",
    "abort",
    "association_end",
    "bind",
    "has_room_to_send",
    "is_dry",
    "look_up",
    "open_socket",
    "path_change",
    "prefer_small",
    "start_connecting",
    "stream_of",
    "tell_when_dry",
    "to_stream",
]

STREAMS = 8
"""Streams each way: 0 for messages of one fragment, the others for larger ones."""

MSG_NOTIFICATION = 0x8000
"""This part of what was received is not data but an event of the association."""

ANCILLARY_BYTES = 128
"""Room for what `stream_of` reads."""

Address = tuple[str, int] | tuple[str, int, int, int]

_ASSOCIATION_CHANGED, _PATH_CHANGED, _SENDER_DRY = 0x8001, 0x8002, 0x8009
_BUFFER_BYTES = 4 << 20

_SEGMENT_BYTES = 8_192
"""Of a packet at most. Loopback would take 64 KiB, of which a receive buffer of the usual 208 KiB holds so few that
the association stalls."""
_SNDINFO, _RCVINFO = 2, 3
_RTOINFO, _ASSOCINFO, _INITMSG, _NODELAY, _PEER_ADDR_PARAMS, _MAXSEG, _RECVRCVINFO = 0, 1, 2, 3, 9, 13, 32
_BINDX_ADD, _CONNECTX = 100, 110
_STREAM_SCHEDULER, _STREAM_SCHEDULER_VALUE, _EVENT = 123, 124, 127
_BY_PRIORITY = 1
_HEARTBEAT_ENABLE = 1
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33

_INT = Struct("=i")
_LINGER = Struct("=ii")
_SEND = Struct("=HHIIi")  # stream, flags, protocol identifier, context, association
_RECEIVED = Struct("=HHHxxIIIIi")  # stream, ...
_RTO = Struct("=iIII")  # association, first, most, least, in ms
_ASSOCIATION = Struct("=iHHIII")  # association, most retransmissions, paths, windows, cookie's life
_ASSOCIATION_VALUE = Struct("=iI")
_PATHS = Struct("=i128sIHIIIIBx")  # association, address, heartbeat in ms, losses, MTU, delay, flags, label, DSCP
_INIT = Struct("=HHHH")  # streams out, most streams in, attempts, ms
_PRIORITY = Struct("=iHH")
_SUBSCRIPTION = Struct("=iHBx")
_STATE = Struct("=HHIH")  # kind, flags, length, state
_CHANGE = Struct("=HHI128sii")  # kind, flags, length, address, state, error
_ENDS = {1: "the connection was lost", 2: "the peer began anew", 3: "the connection was closed"}

_HEARTBEAT_MS = 2_000
_FIRST_RTO_MS, _MOST_RTO_MS, _LEAST_RTO_MS = 500, 2_000, 200
_PATH_RETRIES, _RETRIES = 2, 8
"""A path is left after three losses in a row, a second or two; a peer is given up after nine, a quarter of a minute."""


def open_socket(family: int, url: str) -> socket.socket:
    """Return a one-to-one SCTP socket, not blocking, with our options.

    Raises EndpointError where the kernel has no SCTP, with what to do.
    """
    try:
        opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_SCTP)
    except OSError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            raise
        raise EndpointError(
            f"endpoint {url!r}: this kernel has no SCTP; load it with `modprobe sctp` (as root; in a container, on the "
            "host), or use tcp://"
        ) from error
    try:
        _set_options(opened)
    except BaseException:
        opened.close()
        raise
    return opened


def _set_options(opened: socket.socket) -> None:
    _ask_for_buffer(opened, _SO_SNDBUFFORCE, socket.SO_SNDBUF, _BUFFER_BYTES)
    _ask_for_buffer(opened, _SO_RCVBUFFORCE, socket.SO_RCVBUF, _BUFFER_BYTES)
    for option, value in (
        (_INITMSG, _INIT.pack(STREAMS, STREAMS, 0, 0)),
        (_NODELAY, _INT.pack(1)),
        (_MAXSEG, _ASSOCIATION_VALUE.pack(0, _SEGMENT_BYTES)),
        (_RECVRCVINFO, _INT.pack(1)),
        (_RTOINFO, _RTO.pack(0, _FIRST_RTO_MS, _MOST_RTO_MS, _LEAST_RTO_MS)),
        (_ASSOCINFO, _ASSOCIATION.pack(0, _RETRIES, 0, 0, 0, 0)),
        (_PEER_ADDR_PARAMS, _PATHS.pack(0, b"", _HEARTBEAT_MS, _PATH_RETRIES, 0, 0, _HEARTBEAT_ENABLE, 0, 0)),
        (_EVENT, _SUBSCRIPTION.pack(0, _ASSOCIATION_CHANGED, 1)),
        (_EVENT, _SUBSCRIPTION.pack(0, _PATH_CHANGED, 1)),
    ):
        opened.setsockopt(socket.IPPROTO_SCTP, option, value)


def _ask_for_buffer(opened: socket.socket, force: int, ask: int, size: int) -> None:
    try:
        opened.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, ask, size)  # at most net.core.wmem_max or rmem_max


def has_room_to_send(opened: socket.socket, size: int) -> bool:
    """Say whether one message may have so many bytes, after asking for a larger send buffer where that takes one."""
    if size > opened.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF):
        _ask_for_buffer(opened, _SO_SNDBUFFORCE, socket.SO_SNDBUF, size)
    return size <= opened.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def prefer_small(associated: socket.socket) -> None:
    """Let what waits on stream 0 leave before what waits on the others. Older kernels keep the order of sending."""
    with contextlib.suppress(OSError):
        associated.setsockopt(socket.IPPROTO_SCTP, _STREAM_SCHEDULER, _ASSOCIATION_VALUE.pack(0, _BY_PRIORITY))
        for stream in range(1, STREAMS):
            associated.setsockopt(socket.IPPROTO_SCTP, _STREAM_SCHEDULER_VALUE, _PRIORITY.pack(0, stream, 1))


def look_up(endpoint: Endpoint) -> tuple[int, list[Address]]:
    """Return a family and an endpoint's addresses in it. Blocks for names. Raises OSError where one has none."""
    found = [
        socket.getaddrinfo(host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        for host in endpoint.hosts
    ]
    family = max(entry[0] for entry in found)  # an IPv6 socket takes IPv4 addresses beside its own
    return family, [entry[4] for entry in found]  # type: ignore[misc]  # of an Internet family, as asked


def bind(unbound: socket.socket, addresses: list[Address]) -> int:
    """Bind all addresses to one port, the first's, and return it. Raises OSError."""
    first, *others = addresses
    unbound.bind(first)
    port = int(unbound.getsockname()[1])
    if others:
        at_port = [(address[0], port, *address[2:]) for address in others]
        unbound.setsockopt(socket.IPPROTO_SCTP, _BINDX_ADD, _packed(at_port))
    return port


def start_connecting(unconnected: socket.socket, addresses: list[Address]) -> None:
    """Begin to connect to a peer by all its addresses; the socket is writable once that succeeded or failed.

    Raises OSError where it failed at once.
    """
    with contextlib.suppress(BlockingIOError):
        unconnected.setsockopt(socket.IPPROTO_SCTP, _CONNECTX, _packed(addresses))


def _packed(addresses: list[Address]) -> bytes:
    """Pack addresses as an array of struct sockaddr_in and sockaddr_in6."""
    packed = []
    for address in addresses:
        host, port = address[0], address[1].to_bytes(2, "big")
        if ":" in host:
            flow, scope = address[2:] if len(address) == 4 else (0, 0)
            body = flow.to_bytes(4, "big") + socket.inet_pton(socket.AF_INET6, host) + _INT.pack(scope)
            packed.append(socket.AF_INET6.to_bytes(2, "little") + port + body)
        else:
            packed.append(socket.AF_INET.to_bytes(2, "little") + port + socket.inet_aton(host) + bytes(8))
    return b"".join(packed)


def abort(associated: socket.socket) -> None:
    """Close at once: the peer is told, and what is unsent is gone."""
    with contextlib.suppress(OSError):
        associated.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))
    associated.close()


def to_stream(stream: int, protocol: int) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data of `socket.sendmsg` that sends on a stream."""
    return [(socket.IPPROTO_SCTP, _SNDINFO, _SEND.pack(stream, 0, protocol, 0, 0))]


def stream_of(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the stream that `socket.recvmsg_into` received on."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_SCTP and kind == _RCVINFO:
            return int(_RECEIVED.unpack_from(data)[0])
    return 0


def association_end(notification: memoryview) -> str | None:
    """Say why an association ended, for a person; None where the notification tells of something else.

    Who shut down by itself hears of the end in no other way.
    """
    if notification.nbytes < _STATE.size:
        return None
    kind, _, _, state = _STATE.unpack_from(notification)
    return _ENDS.get(state) if kind == _ASSOCIATION_CHANGED else None


def tell_when_dry(unconnected: socket.socket) -> None:
    """Let the peer's kernel having all that was sent be told, as a notification: see `is_dry`."""
    unconnected.setsockopt(socket.IPPROTO_SCTP, _EVENT, _SUBSCRIPTION.pack(0, _SENDER_DRY, 1))


def is_dry(notification: memoryview) -> bool:
    """Say whether a notification tells that all that was sent has arrived."""
    return notification.nbytes >= 2 and int.from_bytes(notification[:2], sys.byteorder) == _SENDER_DRY


def path_change(notification: memoryview) -> tuple[str, str] | None:
    """Return a peer's address and what became of it, for a person; None where nothing that matters did."""
    if notification.nbytes < _CHANGE.size:
        return None
    kind, _, _, address, state, _ = _CHANGE.unpack_from(notification)
    said = {0: "can be reached again", 1: "cannot be reached"}.get(state)
    if kind != _PATH_CHANGED or said is None:
        return None
    family = int.from_bytes(address[:2], "little")
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, address[8:24]), said
    return socket.inet_ntop(socket.AF_INET, address[4:8]), said
