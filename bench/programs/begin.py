"""How long shardfeed's first batches take. Arguments: the server's URL, and the batch size."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from typing import Any

from shardfeed import RemoteDataset


def first_batch(dataset: RemoteDataset) -> float:
    began = time.perf_counter()
    next(iter(dataset))
    return time.perf_counter() - began


def measure(url: str, batch_size: int) -> dict[str, float]:
    said = {}
    with RemoteDataset(url, batch_size=batch_size, shared_memory=False) as dataset:
        said["fresh"] = first_batch(dataset)
    with RemoteDataset(url, batch_size=batch_size, shared_memory=False) as dataset:
        batches = iter(dataset)
        for _ in itertools.islice(batches, len(dataset) // 2):
            pass
        state: dict[str, Any] = dataset.state_dict()
    with RemoteDataset(url, batch_size=batch_size, shared_memory=False) as dataset:
        dataset.load_state_dict(state)
        said["resumed"] = first_batch(dataset)
    with RemoteDataset(url, batch_size=batch_size, shared_memory=False) as dataset:
        arrivals = []
        for _ in range(2):
            arrivals += [time.perf_counter() for _ in dataset]
        gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
        between = gaps.pop(len(dataset) - 1)
        said["again"] = between
        # Answers come in bunches, so one gap says little: what counts is how many a second.
        said["gap"] = between / statistics.mean(gaps)
    return said


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))), flush=True)


if __name__ == "__main__":
    main()
