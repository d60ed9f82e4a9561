"""tenbin: numpy arrays to chunks of bytes and back, without copying what is large.

An array is two chunks. The header chunk is little-endian int64s: the dtype code as 8 zero-padded
ASCII bytes (``f4``), the name as 8 zero-padded ASCII bytes, ndim, and the dims. The data chunk is
the array's elements in C order, little-endian. A list of arrays is its chunks one after the other:

- as separate chunks (``encode_list``, ``decode_list``), for transports that keep messages in parts;
- in one buffer (``encode_buffer``, ``decode_buffer``), each chunk then being the 8 bytes
  ``~TenBin~``, its length as int64, its bytes, and zeros up to a multiple of 64 bytes.

Nothing here blocks, and nothing is trusted: every length is checked with Python's unbounded
integers before an array is made over the bytes, and everything malformed is a ``TenbinError``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, Literal, NoReturn, Protocol, TypeAlias, overload

import numpy as np

from shardfeed_wire.errors import TenbinError

__all__ = [
    "ALIGNMENT",
    "MAGIC",
    "MAX_NAME_BYTES",
    "Chunk",
    "HasBuffer",
    "Infos",
    "decode_buffer",
    "decode_chunks",
    "decode_list",
    "encode_buffer",
    "encode_chunks",
    "encode_list",
    "frame_chunk",
]

MAGIC = b"~TenBin~"
ALIGNMENT = 64
MAX_NAME_BYTES = 8

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


class HasBuffer(Protocol):
    """Anything that shows its bytes as ``.buffer``, as ``zmq.Frame`` does."""

    @property
    def buffer(self) -> Any:
        """The bytes, as an object with the buffer protocol."""


Infos: TypeAlias = "bool | Sequence[str] | None"
Chunk: TypeAlias = "bytes | bytearray | memoryview | HasBuffer"

_CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_CODE_OF = {order + code: code.encode() for code in _CODES for order in "<>|"}
_DTYPE_OF = {code.encode().ljust(8, b"\0"): np.dtype("<" + code) for code in _CODES}
# numpy's own limit since 2.0; a header that claims more could not become an array.
_MAX_NDIM = 64
_HEADERS = tuple(Struct(f"<8s8sq{ndim}q") for ndim in range(_MAX_NDIM + 1))
_HEADER_OF_LENGTH = {header.size: header for header in _HEADERS}
_FRAME = Struct("<8sq")
_ZEROS = bytes(ALIGNMENT)


def encode_list(arrays: Iterable[Any], infos: Sequence[str] | None = None) -> list[bytes | memoryview]:
    """Encode arrays as chunks: header, data, header, data, ...

    :param arrays: numpy arrays, torch tensors (on any device, with or without gradient), or what
        ``numpy.asarray`` takes; any shape including 0-d and empty; dtypes f2 f4 f8 i1 i2 i4 i8 u1
        u2 u4 u8 in either byte order.
    :param infos: one name an array, at most 8 ASCII characters; None: empty names.
    :returns: two chunks an array, each with a ``len`` that is its bytes. A data chunk is a view of
        the array where that is C-contiguous and little-endian, so the array must not change until
        the chunk was sent.
    :raises TenbinError: a dtype that has no code (bool, bfloat16, complex, object: give another
        dtype), a name too long or not ASCII, or not one name an array.
    """
    items = list(arrays)
    if infos is not None and len(infos) != len(items):
        raise TenbinError(f"infos holds {len(infos)} names for {len(items)} arrays: give one name an array")
    chunks: list[bytes | memoryview] = []
    for number, item in enumerate(items):
        array = item if type(item) is np.ndarray else _as_array(item, number)
        dtype = array.dtype
        code = _CODE_OF.get(dtype.str)
        if code is None:
            raise TenbinError(f"array {number} has dtype {dtype}, which tenbin has no code for: convert it first")
        if dtype.str[0] == ">" or not array.flags.c_contiguous:
            array = array.astype(dtype.newbyteorder("<"), order="C")
        name = b"" if infos is None else _encode_name(infos[number], number)
        chunks.append(_HEADERS[array.ndim].pack(code, name, array.ndim, *array.shape))
        # memoryview.cast refuses a zero in the shape, so an empty array is sent as no bytes at all.
        chunks.append(array.reshape(-1).view(np.uint8).data if array.size else memoryview(b""))
    return chunks


@overload
def decode_list(chunks: Sequence[Chunk], infos: Literal[False] | None = False) -> list[Array]: ...
@overload
def decode_list(chunks: Sequence[Chunk], infos: Literal[True]) -> tuple[list[Array], list[str]]: ...
@overload
def decode_list(chunks: Sequence[Chunk], infos: Sequence[str]) -> list[Array]: ...
@overload
def decode_list(chunks: Sequence[Chunk], infos: Infos) -> list[Array] | tuple[list[Array], list[str]]: ...
def decode_list(chunks: Sequence[Chunk], infos: Infos = False) -> list[Array] | tuple[list[Array], list[str]]:
    """Decode chunks, as ``encode_list`` makes them, into arrays that are views of the chunks.

    :param chunks: header, data, header, data, ...: bytes-like objects or ``zmq.Frame``.
    :param infos: False: return the arrays; True: return arrays and names; a sequence of names:
        return the arrays after checking that theirs are these.
    :returns: little-endian arrays over the data chunks, writable where the chunk is; they keep the
        chunks alive. Or such a list and the list of names.
    :raises TenbinError: a missing data chunk, a header of a wrong length, an unknown dtype, a
        negative dim, a data chunk that is not exactly the bytes its header asks for, a name that is
        not zero-padded ASCII, or names other than those expected. No memory was taken by then.
    """
    if len(chunks) % 2:
        raise TenbinError(f"{len(chunks)} chunks are not pairs of header and data: the message is incomplete")
    arrays: list[Array] = []
    names: list[str] = []
    for number in range(0, len(chunks), 2):
        header, data = _bytes_of(chunks[number]), _bytes_of(chunks[number + 1])
        try:
            if header.nbytes not in _HEADER_OF_LENGTH:
                raise TenbinError(
                    f"its header has {header.nbytes} bytes, not 24 and 8 for each of at most {_MAX_NDIM} dims"
                )
            dtype, name, shape = _decode_header(header.tobytes())
            arrays.append(_array_over(data, dtype, shape))
        except TenbinError as error:
            raise TenbinError(f"array {number // 2}: {error}") from None
        names.append(name)
    if infos is False or infos is None:
        return arrays
    if infos is True:
        return arrays, names
    if list(infos) != names:
        raise TenbinError(f"the arrays are named {names}, not {list(infos)} as expected")
    return arrays


def encode_chunks(chunks: Iterable[Chunk]) -> bytes:
    """Join chunks into one buffer with magic, length and padding; each chunk is copied once."""
    parts: list[bytes | memoryview] = []
    for chunk in chunks:
        parts += frame_chunk(chunk)
    return b"".join(parts)


def frame_chunk(chunk: Chunk) -> tuple[bytes, memoryview, bytes]:
    """Give a chunk as three parts to write after one another: magic and length, its bytes (not copied), padding."""
    view = _bytes_of(chunk)
    size = view.nbytes
    return _FRAME.pack(MAGIC, size), view, _ZEROS[: -size % ALIGNMENT]


def decode_chunks(buffer: Chunk) -> list[memoryview]:
    """Split a buffer of framed chunks into views of its chunks; nothing is copied.

    :raises TenbinError: no magic where a chunk must start, a length that is negative or past the
        end, padding that is cut off or not zero.
    """
    view = _bytes_of(buffer)
    total = view.nbytes
    chunks = []
    offset = 0
    while offset < total:
        start = offset + _FRAME.size
        if start > total:
            raise TenbinError(f"{total - offset} bytes after the last chunk, at byte {offset}: too few for another")
        magic, size = _FRAME.unpack_from(view, offset)
        if magic != MAGIC:
            raise TenbinError(f"no chunk starts at byte {offset}: found {magic!r}, not {MAGIC!r}")
        if size < 0:
            raise TenbinError(f"the chunk at byte {offset} has the negative length {size}")
        end = start + size
        offset = end + -size % ALIGNMENT
        if offset > total:
            raise TenbinError(f"a chunk of {size} bytes starts at byte {start}, but the buffer ends at byte {total}")
        if view[end:offset] != _ZEROS[: offset - end]:
            raise TenbinError(f"the padding at byte {end} is not zero")
        chunks.append(view[start:end])
    return chunks


def encode_buffer(arrays: Iterable[Any], infos: Sequence[str] | None = None) -> bytes:
    """Encode arrays into one buffer; parameters and errors as ``encode_list``, one copy of the data."""
    return encode_chunks(encode_list(arrays, infos))


@overload
def decode_buffer(buffer: Chunk, infos: Literal[False] | None = False) -> list[Array]: ...
@overload
def decode_buffer(buffer: Chunk, infos: Literal[True]) -> tuple[list[Array], list[str]]: ...
@overload
def decode_buffer(buffer: Chunk, infos: Sequence[str]) -> list[Array]: ...
@overload
def decode_buffer(buffer: Chunk, infos: Infos) -> list[Array] | tuple[list[Array], list[str]]: ...
def decode_buffer(buffer: Chunk, infos: Infos = False) -> list[Array] | tuple[list[Array], list[str]]:
    """Decode what ``encode_buffer`` made, as views of the buffer; see ``decode_list``.

    :raises TenbinError: as ``decode_chunks`` and ``decode_list``.
    """
    return decode_list(decode_chunks(buffer), infos)


def _as_array(item: Any, number: int) -> Array:
    """Turn a tensor, a scalar, a list or a subclass of ndarray into a plain array."""
    try:
        if hasattr(item, "detach"):
            item = item.detach().cpu().numpy()
        return np.asarray(item)
    except (TypeError, ValueError, RuntimeError) as error:
        # torch says TypeError for bfloat16 and RuntimeError for sparse tensors.
        raise TenbinError(f"array {number} has no numpy form: {error}; convert its dtype or layout first") from error


def _encode_name(name: str, number: int) -> bytes:
    if not name.isascii() or len(name) > MAX_NAME_BYTES or "\0" in name:
        raise TenbinError(f"array {number} cannot be named {name!r}: a name is at most 8 ASCII characters")
    return name.encode("ascii")


def _bytes_of(chunk: Chunk) -> memoryview:
    """View a chunk as flat bytes."""
    if type(chunk) is bytes:
        return memoryview(chunk)
    if not isinstance(chunk, bytes | bytearray | memoryview):
        chunk = getattr(chunk, "buffer", chunk)
    try:
        view = memoryview(chunk)  # type: ignore[arg-type]  # a wrong type is what the except is for
        if view.ndim == 1 and view.format == "B" and view.contiguous:
            return view
        return view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, ValueError) as error:
        raise TenbinError(f"a chunk must be contiguous bytes, not {type(chunk).__name__}: {error}") from error


@lru_cache(maxsize=1024)
def _decode_header(header: bytes) -> tuple[np.dtype[Any], str, tuple[int, ...]]:
    """Take a header of a length that there is apart; remembered, for those of a stream's batches are the same."""
    code, name_bytes, ndim, *shape = _HEADER_OF_LENGTH[len(header)].unpack(header)
    dtype = _DTYPE_OF.get(code)
    if dtype is None:
        raise TenbinError(f"its dtype code {code!r} is unknown")
    if ndim != len(shape):
        raise TenbinError(f"its header says {ndim} dims and holds {len(shape)}")
    name = name_bytes.rstrip(b"\0")
    if not name.isascii() or b"\0" in name:
        raise TenbinError(f"its name {name_bytes!r} is not zero-padded ASCII")
    return dtype, name.decode("ascii"), tuple(shape)


def _array_over(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    needed = dtype.itemsize
    for dim in shape:
        if dim < 0:
            raise TenbinError(f"a dim of its shape {shape} is negative")
        needed *= dim
    if needed != data.nbytes:
        _raise_wrong_size(needed, data.nbytes, dtype, shape)
    try:
        return np.ndarray(shape, dtype, data)
    except (ValueError, TypeError) as error:
        # (0, 2**62) needs no bytes, and yet numpy cannot index it.
        raise TenbinError(f"its shape {shape} is more than numpy can hold: {error}") from None


def _raise_wrong_size(needed: int, found: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NoReturn:
    raise TenbinError(f"shape {shape} of {dtype} needs {needed} bytes, but its data chunk has {found}")
