"""Files with holes in tar, in the four ways that GNU tar has written them.

Nobody means to put holes into a training set, but GNU tar's ``--sparse`` does it to files that
happen to have them, and then the member's bytes are not the file's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from shardfeed_wire.errors import ShardError
from webdataset.tarheader import BLOCK, number, padded

__all__ = ["MAX_SPARSE_BYTES", "Sparse", "gnu_map", "pax_sparse"]

MAX_SPARSE_BYTES = 256 << 20
"""A header of a few bytes can claim any size, so what a file with holes may expand to is bounded."""


@dataclass(frozen=True, slots=True)
class Sparse:
    """Where the pieces of a member's data belong.

    ``size`` is the file's size in bytes, ``pieces`` are (offset, length) in the order of the data;
    None means that the data starts with the list (pax sparse format 1.0).
    """

    size: int
    pieces: tuple[tuple[int, int], ...] | None

    def expand(self, data: bytes) -> bytes:
        """Lay a member's data out as the file that it is, with zeros in the holes.

        :raises ShardError: the file is over ``MAX_SPARSE_BYTES``, or the list does not fit the data.
        """
        if self.size > MAX_SPARSE_BYTES:
            raise ShardError(
                f"a sparse file in it has {self.size} bytes, over the limit of {MAX_SPARSE_BYTES}: pack it dense"
            )
        pieces, at = (self.pieces, 0) if self.pieces is not None else _leading_list(data)
        result = bytearray(self.size)
        for offset, length in pieces:
            if offset < 0 or length < 0 or offset + length > self.size or at + length > len(data):
                raise ShardError("the list of pieces of a sparse file in it is wrong")
            result[offset : offset + length] = data[at : at + length]
            at += length
        return bytes(result)


def gnu_map(block: bytes) -> tuple[list[tuple[int, int]], bool]:
    """Read (offset, length) pairs from an old GNU header, and whether an extension block follows.

    Give the header itself, or an extension block, which holds 21 pairs from its start.
    """
    first, count, more = (386, 4, block[482]) if block[156:157] == b"S" else (0, 21, block[504])
    pairs = []
    for at in range(first, first + 24 * count, 24):
        offset, length = number(block[at : at + 12]), number(block[at + 12 : at + 24])
        if not block[at + 12 : at + 24].strip(b"\0 "):
            break
        pairs.append((offset, length))
    return pairs, bool(more)


def pax_sparse(records: dict[str, bytes], repeated: list[tuple[str, bytes]]) -> Sparse | None:
    """Make what a pax header says of a member's holes, or None where it says nothing.

    :param records: the last value of each keyword; ``repeated``: every record, in order, for
        format 0.0 repeats its keywords.
    """
    try:
        if "GNU.sparse.map" in records:
            numbers = [int(text) for text in records["GNU.sparse.map"].split(b",") if text]
            return Sparse(int(records["GNU.sparse.size"]), tuple(pairwise(numbers))[::2])
        if records.get("GNU.sparse.major") == b"1":
            return Sparse(int(records["GNU.sparse.realsize"]), None)
        if "GNU.sparse.size" in records:
            offsets = [int(value) for keyword, value in repeated if keyword == "GNU.sparse.offset"]
            lengths = [int(value) for keyword, value in repeated if keyword == "GNU.sparse.numbytes"]
            return Sparse(int(records["GNU.sparse.size"]), tuple(zip(offsets, lengths, strict=True)))
    except (ValueError, KeyError) as error:
        raise ShardError(f"a sparse file in it is described wrongly: {error!r}") from None
    return None


def _leading_list(data: bytes) -> tuple[tuple[tuple[int, int], ...], int]:
    """Read the decimal lines that pax sparse format 1.0 puts before the data, padded to a block."""
    try:
        end = data.index(b"\n") + 1
        count = int(data[: end - 1])
        if not 0 <= count <= len(data) // 4:
            raise ValueError(count)
        numbers = []
        for _ in range(2 * count):
            line_end = data.index(b"\n", end) + 1
            numbers.append(int(data[end : line_end - 1]))
            end = line_end
    except ValueError:
        raise ShardError("the list of pieces of a sparse file in it is wrong") from None
    return tuple(zip(numbers[::2], numbers[1::2], strict=True)), padded(end) if end % BLOCK else end
