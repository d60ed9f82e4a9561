"""The short way through a sample's bytes: members as nearly all are written, one after the other.

`tarwalk` knows all of tar and says what is wrong with the rest; here is what runs once a sample of a
data set, and leaves to it whatever is not plain.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from webdataset.keys import NO_PREFIX, Keys, field_of, prefix_of
from webdataset.tarheader import BLOCK, gives_a_time, plain_header

__all__ = ["plain_places", "read_plain_sample"]


def read_plain_sample(data: bytes, keys: Keys, suffixes: Collection[str] | None) -> dict[str, Any] | None:
    """Return ``__key__`` and the fields' bytes of a sample that is whole and plain; None for any other.

    Plain are regular files of one key, each with one header: no ustar prefix, no extension header but for a
    time, no name that means something else, no field twice.
    """
    found = plain_places(data, keys)
    if found is None:
        return None
    key, places = found
    sample: dict[str, Any] = {"__key__": key}
    for suffix, (start, end) in places.items():
        if suffixes is None or suffix in suffixes:
            sample[suffix] = data[start:end]
    return sample


def plain_places(data: bytes | bytearray, keys: Keys) -> tuple[str, dict[str, tuple[int, int]]] | None:
    """Return the key of such a sample, and for each field the bounds of its bytes; only headers are looked at."""
    places: dict[str, tuple[int, int]] = {}
    sample_key, prefix = None, NO_PREFIX
    at, end = 0, len(data)
    while at < end:
        block = bytes(data[at : at + BLOCK])
        header = plain_header(block)
        if header is None and gives_a_time(block, bytes(data[at + BLOCK : at + 2 * BLOCK])):
            at += 2 * BLOCK
            header = plain_header(bytes(data[at : at + BLOCK]))
        if header is None:
            return None
        name, size = header
        suffix = field_of(name[len(prefix) :]) if name.startswith(prefix) else None
        if suffix is None:
            path = name.decode("utf-8", "surrogateescape")
            key, suffix = keys(path)
            if key is None or suffix is None or path[:2] == "__":
                return None
            if key != sample_key:
                if sample_key is not None:
                    return None
                sample_key, prefix = key, prefix_of(key, keys)
            suffix = suffix.lower()
        start = at + BLOCK
        at = start + size + (-size & (BLOCK - 1))
        if at > end or suffix in places or suffix == "__key__":
            return None
        places[suffix] = start, start + size
    return None if sample_key is None else (sample_key, places)
