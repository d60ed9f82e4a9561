"""The typed control messages, and how a message and its tensors become tenbin arrays.

Array 0 of every message is named ``control``: uint8, one MessagePack map with a ``type`` field.
The tensors follow in order. `docs/protocol.md` is the specification; unknown fields are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from shardfeed_wire import tenbin
from shardfeed_wire.errors import MessageError, TenbinError

__all__ = [
    "MAX_CONTROL_BYTES",
    "MAX_REQUEST_ROWS",
    "PROTOCOL_VERSION",
    "Batch",
    "Cancel",
    "Column",
    "Failure",
    "Get",
    "GetManifest",
    "Hello",
    "Manifest",
    "Message",
    "Padding",
    "Ping",
    "Pong",
    "Refused",
    "Seconds",
    "SharedMemory",
    "StreamInfo",
    "Waited",
    "Welcome",
    "control_bytes",
    "pack",
    "unpack",
]

PROTOCOL_VERSION: Final = 1
"""Peers work together when their versions differ by at most one."""

MAX_CONTROL_BYTES: Final = 16 << 20
"""A larger control message is refused before it is parsed."""

MAX_REQUEST_ROWS: Final = 16_384
"""The most samples that one Get may name."""

_MOST_BFLOAT16: Final = float.fromhex("0x1.fep127")

Kind: TypeAlias = Literal["dense", "ragged", "text", "bytes", "json"]
Reason: TypeAlias = Literal[
    "busy",
    "draining",
    "indexing",
    "unknown_stream",
    "data_differs",
    "recipe_differs",
    "version_differs",
    "unreadable_shard",
    "bad_request",
    "shapes_differ",
    "failed",
]


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a message: a map without a type of its own."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower):
    """A control message: a map whose ``type`` is the class's name in lower case."""


class Padding(_Part, frozen=True, kw_only=True):
    """How a client turns a ragged column into one dense tensor.

    ``value`` fills; ``length``, where given, is the size of the first dimension (longer rows are
    cut by the server); ``mask``, where given, names a bool column of shape (rows, length) that is
    True where there is data.
    """

    value: float = 0
    length: int | None = None
    mask: str | None = None

    def fits(self, dtype: str) -> bool:
        """Say whether ``value`` is one that a column of this logical dtype can hold."""
        if dtype == "bool":
            return self.value in (0, 1)
        if dtype == "bfloat16":
            return not math.isfinite(self.value) or abs(self.value) <= _MOST_BFLOAT16
        numbers = np.dtype(dtype)
        if numbers.kind in "iu":
            return np.iinfo(numbers).min <= self.value <= np.iinfo(numbers).max and self.value == int(self.value)
        return not math.isfinite(self.value) or abs(self.value) <= float(np.finfo(numbers).max)


class Column(_Part, frozen=True, kw_only=True):
    """One column, as a stream promises it or as a batch brings it.

    ``dtype`` is the logical one in numpy's words (``uint8``, ``float32``, ``bool``, ``bfloat16``).
    ``shape`` is one row's shape, with None for a dimension that varies; None where unknown.
    ``tensor`` is, in a Batch, the number of the column's first tensor, counted after ``control``.

    A dense column is one tensor of shape (rows, *shape). A ragged one is three: the values, flat;
    int64 offsets of shape (rows + 1,) into them; int64 shapes of shape (rows, ndim). Text, bytes
    and JSON are two: uint8 values and int64 offsets.
    """

    name: str
    kind: Kind = "dense"
    dtype: str = "uint8"
    shape: tuple[int | None, ...] | None = None
    padding: Padding | None = None
    tensor: int = 0


class StreamInfo(_Part, frozen=True, kw_only=True):
    """What a server says of one stream.

    ``data`` and ``recipe`` are the fingerprints, ``facts`` the parts of the recipe in words, so that
    a difference can be named. ``unnamed`` says that batches are tuples, not dicts. ``readable`` is
    None where the server reads every shard, else one bit a shard in manifest order, least bit first.
    """

    name: str
    data: str
    recipe: str
    samples: int
    blocks: int
    shards: int
    columns: tuple[Column, ...]
    unnamed: bool = False
    facts: dict[str, str] = {}
    readable: bytes | None = None


class SharedMemory(_Part, frozen=True, kw_only=True):
    """Where a client on the server's machine gets answers as memory: see `shardfeed_wire.sharing`.

    ``socket`` is a name in Linux's abstract namespace, new at each start, so that who reaches it is on
    the same machine; ``token`` is for this connection alone.
    """

    socket: str
    token: bytes


class Hello(_Message, frozen=True, kw_only=True):
    """A client's first message on a channel."""

    version: int
    job: str
    rank: int = 0
    software: str = ""


class Welcome(_Message, frozen=True, kw_only=True):
    """The answer to Hello. ``server`` is stable over restarts, ``nonce`` is new at each start.

    ``shared`` is None where the server does not share memory.
    """

    version: int
    server: str
    nonce: str
    workers: int
    streams: tuple[StreamInfo, ...]
    software: str = ""
    shared: SharedMemory | None = None


class GetManifest(_Message, frozen=True, kw_only=True):
    """Ask for the block sizes behind one data fingerprint."""

    request: int
    stream: str
    data: str


class Manifest(_Message, frozen=True, kw_only=True):
    """The answer. Tensors: uint16 samples of each block; uint32 blocks of each shard; the shards' names as text."""

    request: int
    data: str
    samples: int


class Waited(_Part, frozen=True, kw_only=True):
    """What a trainer has waited for since it last told: seconds by cause, and the steps that it took meanwhile."""

    steps: int = 0
    queue: float = 0.0
    reading: float = 0.0
    decoding: float = 0.0
    collating: float = 0.0
    wire: float = 0.0


class Get(_Message, frozen=True, kw_only=True):
    """Ask for samples. Tensors: uint32 blocks and uint16 samples inside them, both of shape (rows,).

    ``waited`` has nothing to do with the samples: it tells the server's figures how the trainer fares.
    """

    request: int
    stream: str
    data: str
    recipe: str
    seed: int
    epoch: int
    keys: bool = False
    waited: Waited | UnsetType = UNSET


class Failure(_Part, frozen=True, kw_only=True):
    """One row that could not be made; its place in the columns is zero."""

    row: int
    shard: str
    key: str
    field: str | None = None
    reason: str = ""
    traceback: str = ""


class Seconds(_Part, frozen=True, kw_only=True):
    """Where a request's time went on the server."""

    waiting: float = 0.0
    reading: float = 0.0
    decoding: float = 0.0
    collating: float = 0.0


class Batch(_Message, frozen=True, kw_only=True):
    """The answer to Get, rows in the order asked.

    Tensor 0 is ``keyhash``, uint8 of shape (rows, 16): BLAKE2b-128 of shard, a zero byte, and key.
    Where keys were asked for, three follow: ``shard``, uint32 of shape (rows,), numbers into
    ``shards``; the keys as text (uint8 values, int64 offsets). Then the columns. ``first`` is shard and key of row 0.
    """

    request: int
    rows: int
    columns: tuple[Column, ...]
    first: tuple[str, str]
    failures: tuple[Failure, ...] = ()
    shards: tuple[str, ...] = ()
    seconds: Seconds = Seconds()


class Refused(_Message, frozen=True, kw_only=True):
    """The answer to Hello, Get or GetManifest when there is none. ``message`` is for a person."""

    request: int
    reason: str
    message: str


class Cancel(_Message, frozen=True, kw_only=True):
    """The client no longer wants these requests; they may be answered nevertheless."""

    requests: tuple[int, ...]


class Ping(_Message, frozen=True, kw_only=True):
    """Is somebody there?"""

    number: int


class Pong(_Message, frozen=True, kw_only=True):
    """Yes, the one with this nonce."""

    number: int
    nonce: str


Message: TypeAlias = Hello | Welcome | GetManifest | Manifest | Get | Batch | Refused | Cancel | Ping | Pong

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def control_bytes(message: Message) -> bytes:
    """Encode the control message alone."""
    return _encoder.encode(message)


def pack(message: Message, tensors: Sequence[NDArray[Any]] = ()) -> list[Any]:
    """Return the chunks of a message: header and data of ``control``, then of each tensor, without copies."""
    control = np.frombuffer(_encoder.encode(message), dtype=np.uint8)
    return tenbin.encode_list([control, *tensors], infos=["control", *[""] * len(tensors)])


def unpack(chunks: Sequence[Any]) -> tuple[Message, list[NDArray[Any]]]:
    """Return the message in ``chunks`` and its tensors, views of the chunks.

    ``chunks`` is either a multipart message (header and data of each array) or a single buffer.
    Raises MessageError, naming what is wrong, for anything that is not a message of the protocol.
    """
    try:
        arrays = tenbin.decode_buffer(chunks[0]) if len(chunks) == 1 else tenbin.decode_list(chunks)
    except TenbinError as error:
        raise MessageError(f"not a shardfeed message: {error}") from error
    if not arrays or arrays[0].dtype != np.uint8 or arrays[0].ndim != 1 or arrays[0].size > MAX_CONTROL_BYTES:
        raise MessageError("not a shardfeed message: its first array is not a control message")
    try:
        return _decoder.decode(arrays[0].data), arrays[1:]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a shardfeed message: {error}") from error
