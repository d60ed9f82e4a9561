"""A trainer of a sweep. Arguments: the server's URL, the batch size, and the seed.

A fourth is the requests that it has under way at the server, instead of what a client takes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

from rounds import answer
from shardfeed import RemoteDataset, servers
from shardfeed.fetch_events import ServerUp


def _up(slots_here: int, name: str, *, slots: int, shards: Any) -> ServerUp:
    return ServerUp(name, slots=slots_here, shards=shards)


def main() -> None:
    url, batch_size, seed, *slots = sys.argv[1:]
    if slots:
        servers.ServerUp = functools.partial(_up, int(slots[0]))  # type: ignore[assignment, misc]
    dataset = RemoteDataset(url, batch_size=int(batch_size), seed=int(seed))

    def one_pass(_look: bool) -> Iterator[tuple[Any, Any]]:
        yield from dataset

    def connect() -> None:
        len(dataset)

    # Closed between two passes: what it fetches ahead of the next one would be work that no clock sees.
    answer(one_pass, before=connect, after=dataset.close)


if __name__ == "__main__":
    main()
