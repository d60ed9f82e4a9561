"""webdataset 1.x under a DataLoader, for texts and classes. Arguments: workers, batch size, and the shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

import webdataset
from rounds import answer


def main() -> None:
    workers, batch_size, shards = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    samples = webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("txt", "cls").batched(batch_size)
    loader = torch.utils.data.DataLoader(samples, batch_size=None, num_workers=workers, persistent_workers=True)

    def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
        yield from loader

    answer(one_pass)


if __name__ == "__main__":
    main()
