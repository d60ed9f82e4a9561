"""Clients that share an epoch as ranks do, each in a thread; each line on stdin lets them take some more steps.

Arguments: how many, batch size, steps of each a line, and the URLs.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from shardfeed import RemoteDataset

ROW_BYTES = 150


def rows_of(batches: Iterator[Any], steps: int) -> int:
    return sum(len(labels) for _, labels in itertools.islice(batches, steps))


def main() -> None:
    clients, batch_size, steps, urls = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    # What all ask for ahead keeps the servers busy, and is soon through: a deep queue would be what is timed.
    ahead = max(2, 4 * len(urls) // clients)
    with ExitStack() as stack:
        datasets = [
            stack.enter_context(
                RemoteDataset(
                    urls,
                    batch_size=batch_size,
                    rank=rank,
                    world_size=clients,
                    job=f"rank-{rank}",
                    prefetch_bytes=ahead * batch_size * ROW_BYTES,
                )
            )
            for rank in range(clients)
        ]
        # One epoch goes on over all lines: what is fetched ahead between two of them is little.
        under_way = [iter(dataset) for dataset in datasets]
        print(json.dumps({"ready": True}), flush=True)
        with ThreadPoolExecutor(clients) as pool:
            for _ in sys.stdin:
                began = time.perf_counter()
                counted = sum(pool.map(rows_of, under_way, [steps] * clients))
                seconds = time.perf_counter() - began
                assert counted == steps * clients * batch_size, "the epoch is over"
                print(json.dumps({"seconds": seconds, "samples": counted}), flush=True)


if __name__ == "__main__":
    main()
