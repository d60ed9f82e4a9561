"""The short way through many samples at once: those that are alike, as nearly all of a data set are.

`plainsample` takes 3 us for a sample of two small members, most of it for their headers; numpy looks at the headers
of all samples in a tenth of that. Whatever is not plain, or not like the first sample, is left to others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from webdataset.keys import field_of
from webdataset.tarheader import BLOCK, gives_a_time

__all__ = ["plain_members", "plain_samples"]

_NAME, _SIZE, _STOP, _CHECKSUM, _CHECKSUM_STOP, _KIND, _PREFIX = slice(100), slice(124, 135), 135, 148, 154, 156, 345
_EXTENSION: Final = ord("x")
_PLACES: Final = 8 ** np.arange(10, -1, -1, dtype=np.int64)


def plain_samples(
    data: bytes, bounds: NDArray[np.int64], suffixes: Sequence[str]
) -> tuple[list[str], list[list[bytes]]] | None:
    """Return the keys of samples, and for each of ``suffixes`` the fields' bytes; None where they are not all plain.

    Parameters and what is plain as `plain_members` has it; besides, all have each suffix.
    """
    found = plain_members(data, bounds)
    if found is None or not all(suffix in found[1] for suffix in suffixes):
        return None
    keys, places = found
    fields = []
    for suffix in suffixes:
        starts, stops = places[suffix]
        fields.append([data[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)])
    return keys, fields


def plain_members(
    data: bytes | memoryview, bounds: NDArray[np.int64]
) -> tuple[list[str], dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]] | None:
    """Return the keys of samples, where each field's bytes start and stop: i8[samples]; None where one is not plain.

    Plain is what `read_plain_sample` says; besides, all have the same members in the same order, and all members have
    a time in front of them, or none. Only headers are looked at.

    :param data: whole samples, one after the other; ``bounds`` i8[samples + 1]: where each begins, and the end.
    """
    if (bounds % BLOCK).any():
        return None
    blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCK)
    at, ends = bounds[:-1], bounds[1:]
    keys: list[bytes] = []
    fields: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    while (at < ends).all():
        at = _behind_times(blocks, at, ends)
        if (at >= ends).any():
            return None
        headers = blocks[at // BLOCK]
        sizes = _plain_sizes(headers)
        if sizes is None:
            return None
        starts = at + BLOCK
        at = starts + sizes + (-sizes & (BLOCK - 1))
        if (at > ends).any():
            return None
        names = headers[:, _NAME].copy().view("S100").ravel().tolist()
        if not keys:
            found = _keys(names)
            if found is None:
                return None
            keys = found
        field = _field(names, keys)
        if field is None or field in fields or field == "__key__":
            return None
        fields[field] = starts, starts + sizes
    if (at != ends).any():
        return None
    return [key.decode("utf-8", "surrogateescape") for key in keys], fields


def _behind_times(blocks: NDArray[np.uint8], at: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the members' own headers are: behind extension headers that only give a time; i8[samples]."""
    first = at // BLOCK
    if blocks[first[0], _KIND] != _EXTENSION or (at + BLOCK >= ends).any():
        return at
    for extension, behind in zip(blocks[first], blocks[first + 1], strict=True):
        if not gives_a_time(extension.tobytes(), behind.tobytes()):
            return at  # where nothing plain is found
    return at + 2 * BLOCK


def _plain_sizes(headers: NDArray[np.uint8]) -> NDArray[np.int64] | None:
    """Return the members' sizes where all headers are plain, as `plain_header` has it; i8[headers]."""
    digits = headers[:, _SIZE] - np.uint8(0x30)
    checksum = headers[:, _CHECKSUM:_CHECKSUM_STOP] - np.uint8(0x30)
    stop = headers[:, _STOP]
    if (
        (headers[:, _KIND] != 0x30).any()
        or headers[:, _PREFIX].any()
        or headers[:, _CHECKSUM_STOP].any()
        or ((stop != 0) & (stop != 0x20)).any()
        or max(int(digits.max()), int(checksum.max())) > 7
    ):
        return None
    # The checksum's own eight bytes count as spaces.
    sums = headers.sum(axis=1, dtype=np.int64) - headers[:, _CHECKSUM : _CHECKSUM + 8].sum(axis=1, dtype=np.int64)
    if (sums + 8 * 0x20 != checksum @ _PLACES[-6:]).any():
        return None
    sizes: NDArray[np.int64] = digits @ _PLACES
    return sizes


def _keys(names: list[bytes]) -> list[bytes] | None:
    """Return the keys in names of first members, as `base_plus_ext` finds them."""
    keys = []
    for name in names:
        slash = name.rfind(b"/") + 1
        dot = name.find(b".", slash)
        if dot <= slash or name[:2] == b"__" or b"\0" in name:
            return None
        keys.append(name[:dot])
    return keys


def _field(names: list[bytes], keys: list[bytes]) -> str | None:
    """Return the field that all names name, where each goes on from its key in the same way."""
    rest = names[0][len(keys[0]) :]
    if rest[:1] != b"." or b"\0" in rest or any(name != key + rest for name, key in zip(names, keys, strict=True)):
        return None
    return field_of(rest[1:])
