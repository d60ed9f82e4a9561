"""Samples of shards by `tariterator(decoder=False)`. Arguments: the shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from rounds import answer
from webdataset.samples import tariterator


def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
    for shard in sys.argv[1:]:
        with open(shard, "rb") as stream:  # noqa: PTH123 - as the other sides open it
            for sample in tariterator(stream, decoder=False):
                yield [np.frombuffer(sample["bin"], np.uint8)] if look else None, int(sample["cls"])


if __name__ == "__main__":
    answer(one_pass)
