"""The short way through a sample's bytes: members as nearly all are written, one after the other.

`tarwalk` knows all of tar and says what is wrong with the rest; here is what runs once a sample of a
data set, and leaves to it whatever is not plain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from webdataset.tarheader import BLOCK, checksum_matches, number

__all__ = ["read_plain_sample"]

_FILE = ord("0")
_KIND, _PREFIX = 156, 345


def read_plain_sample(
    data: bytes, keys: Callable[[str], tuple[str | None, str | None]], suffixes: Collection[str] | None
) -> dict[str, Any] | None:
    """Return ``__key__`` and the fields' bytes of a sample that is whole and plain; None for any other.

    Plain are regular files of one key, each with one header: no extension header, no ustar prefix, no
    name that means something else, no field twice. Raises ShardError for a size that is no number.
    """
    sample: dict[str, Any] = {}
    sample_key: str | None = None
    at, end = 0, len(data)
    while at < end:
        header = data[at : at + BLOCK]
        if len(header) < BLOCK or header[_KIND] != _FILE or header[_PREFIX] or not checksum_matches(header):
            return None
        size = number(header[124:136])
        name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        key, suffix = keys(name)
        if key is None or suffix is None or name[:2] == "__" or name[-1:] == "/":
            return None
        if key != sample_key:
            if sample_key is not None:
                return None
            sample_key = sample["__key__"] = key
        suffix = suffix.lower()
        start = at + BLOCK
        at = start + size + (-size & (BLOCK - 1))
        if at > end or suffix in sample:
            return None
        if suffixes is None or suffix in suffixes:
            sample[suffix] = data[start : start + size]
    return sample or None
