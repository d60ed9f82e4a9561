"""A trainer of a sweep. Arguments: the server's URL, the batch size, and the seed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rounds import answer
from shardfeed import RemoteDataset


def main() -> None:
    url, batch_size, seed = sys.argv[1:]
    dataset = RemoteDataset(url, batch_size=int(batch_size), seed=int(seed))

    def one_pass(_look: bool) -> Iterator[tuple[Any, Any]]:
        yield from dataset

    def connect() -> None:
        len(dataset)

    # Closed between two passes: what it fetches ahead of the next one would be work that no clock sees.
    answer(one_pass, before=connect, after=dataset.close)


if __name__ == "__main__":
    main()
