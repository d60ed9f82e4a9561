"""What any reader has to do at least: copy each sample's bytes, whose places are known. Arguments: the shards."""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from rounds import answer


def places(shard: str) -> list[tuple[int, int, int]]:
    """Return offset and size of each sample's large member, and its number."""
    with tarfile.open(shard, "r:") as tar:
        members = tar.getmembers()
        numbers = [int(tar.extractfile(member).read()) for member in members[1::2]]  # type: ignore[union-attr]
        return [(member.offset_data, member.size, number) for member, number in zip(members[::2], numbers, strict=True)]


def main() -> None:
    known = {shard: places(shard) for shard in sys.argv[1:]}

    def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
        for shard, found in known.items():
            descriptor = os.open(shard, os.O_RDONLY)
            for offset, size, number in found:
                data = os.pread(descriptor, size, offset)
                yield [np.frombuffer(data, np.uint8)] if look else None, number
            os.close(descriptor)

    answer(one_pass)


if __name__ == "__main__":
    main()
