"""From headers to members: the one place that knows which header belongs to which data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

from shardfeed_wire.errors import ShardError
from webdataset.tarheader import (
    BLOCK,
    ZERO_BLOCK,
    checksum_matches,
    member_name,
    number,
    padded,
    parse_pax,
    what_it_is_instead,
)
from webdataset.tarsource import Source
from webdataset.tarsparse import Sparse, gnu_map, pax_sparse

__all__ = ["Hasher", "Member", "read_member", "truncated_inside", "walk"]

Member: TypeAlias = "tuple[str, int, int, int, int, Sparse | None]"
"""Name, offset of the first header, offset of the data, stored size, offset past the padding, holes."""

_MAX_EXTENSION = 4 << 20
_FILES = (b"0", b"\0", b"7", b"S")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")


class Hasher(Protocol):
    """What ``hashlib`` makes."""

    def update(self, data: bytes, /) -> None:
        """Add bytes to the sum."""


def walk(source: Source, offset: int = 0, *, hasher: Hasher | None = None, part: bool = False) -> Iterator[Member]:
    """Yield the members of a tar that are files, in order; may block on the source.

    A plain tuple is yielded, for this runs once a file of a data set. A member's data is left
    where it is: ``read_member`` reads it, before the next step, or it is skipped.

    :param offset: where a header is, to begin at.
    :param hasher: is given the bytes of every header, extension headers and their data included.
    :param part: the source holds whole members but not the tar's end mark, as a sample's range does.
    :raises ShardError: not a tar, a broken header, or the source ends too early; no shard is named.
    """
    while True:
        start = offset
        pax: list[tuple[str, bytes]] = []
        long_name: bytes | None = None
        while True:
            block = source.block(offset)
            if len(block) < BLOCK or block == ZERO_BLOCK:
                _check_end(source, block, offset, at_member=offset == start, part=part)
                return
            if not checksum_matches(block):
                _raise_no_header(source, block, offset)
            if hasher is not None:
                hasher.update(block)
            kind = block[156:157]
            size = number(block[124:136])
            offset += BLOCK
            if kind not in b"xgLKX":
                break
            data = _extension(source, offset, size)
            offset += padded(size)
            if hasher is not None:
                hasher.update(data)
            if kind == b"L":
                long_name = data.partition(b"\0")[0]
            elif kind == b"g":
                _check_global(parse_pax(data))
            elif kind != b"K":
                pax += parse_pax(data)
        if kind in _WITHOUT_DATA:
            continue
        name = member_name(block) if long_name is None else long_name.decode("utf-8", "surrogateescape")
        sparse = None
        if kind == b"S":
            sparse, offset = _old_gnu_sparse(source, block, offset, hasher)
        if pax:
            records = dict(pax)
            name = _pax_name(records, name)
            size = _pax_size(records, size)
            sparse = sparse or pax_sparse(records, pax)
        data_at = offset
        offset += size + (-size & 511)
        # In the oldest tars a directory is a file whose name ends with a slash.
        if kind in _FILES and not name.endswith("/"):
            yield name, start, data_at, size, offset, sparse


def read_member(source: Source, member: Member) -> bytes:
    """Read the data of the member that ``walk`` yielded last, holes filled; may block.

    :raises ShardError: the source ends inside it.
    """
    name, _, at, size, _, sparse = member
    data = source.read(at, size)
    if len(data) < size:
        raise truncated_inside(source, name, size)
    return data if sparse is None else sparse.expand(data)


def truncated_inside(source: Source, name: str, size: int) -> ShardError:
    """Return the error of a source that ends inside a member."""
    return ShardError(f"it is truncated: it ends at byte {source.end}, inside {name!r}, which has {size} bytes")


def _check_end(source: Source, block: bytes, offset: int, *, at_member: bool, part: bool) -> None:
    if len(block) == BLOCK:
        if at_member:
            return
        raise ShardError(f"it is truncated: the end mark at byte {offset} follows a header without its member")
    if at_member and part and offset == source.end:
        return
    if source.end == 0:
        raise ShardError("it is empty: 0 bytes are not a tar")
    if offset < BLOCK:
        _raise_no_header(source, block, offset)
    where = "inside a member" if offset > source.end or not at_member or block else "without a tar's end mark"
    raise ShardError(f"it is truncated: it ends at byte {source.end}, {where}; write it again")


def _raise_no_header(source: Source, block: bytes, offset: int) -> None:
    if offset:
        raise ShardError(f"it is broken: no tar header at byte {offset}, where one must be (wrong checksum)")
    other = what_it_is_instead(block)
    raise ShardError(f"it is not a tar but {other}" if other else "it is not a tar: its first 512 bytes are no header")


def _extension(source: Source, offset: int, size: int) -> bytes:
    if size > _MAX_EXTENSION:
        raise ShardError(f"the extension header before byte {offset} claims {size} bytes")
    data = source.read(offset, size)
    if len(data) < size:
        raise ShardError(f"it is truncated: it ends at byte {source.end}, inside an extension header")
    return data


def _check_global(records: list[tuple[str, bytes]]) -> None:
    """Refuse a header for all members that says where they lie: a sample is read without what came long before it."""
    for keyword, _ in records:
        if keyword in ("path", "size") or keyword.startswith("GNU.sparse"):
            raise ShardError(
                f"a global pax header in it sets {keyword!r} for all members: write it with --format=ustar"
            )


def _old_gnu_sparse(source: Source, block: bytes, offset: int, hasher: Hasher | None) -> tuple[Sparse, int]:
    size = number(block[483:495])
    pieces, more = gnu_map(block)
    while more:
        block = source.block(offset)
        if len(block) < BLOCK:
            raise ShardError(f"it is truncated: it ends at byte {source.end}, inside a sparse file's header")
        if hasher is not None:
            hasher.update(block)
        further, more = gnu_map(block)
        pieces += further
        offset += BLOCK
    return Sparse(size, tuple(pieces)), offset


def _pax_name(records: dict[str, bytes], name: str) -> str:
    path = records.get("GNU.sparse.name") or records.get("path")
    return path.decode("utf-8", "surrogateescape") if path else name


def _pax_size(records: dict[str, bytes], size: int) -> int:
    text = records.get("size")
    if text is None:
        return size
    if not text.isdigit() or len(text) > 20:
        raise ShardError(f"a pax header in it holds the size {text!r}")
    return int(text)
