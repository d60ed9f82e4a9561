"""A trainer inside a Ray cluster: prints each step, waits at some for a line of input, and ends with the digest."""

from __future__ import annotations

import logging
import sys

from shardfeed import RemoteDataset


def main(endpoint: str, *waits: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Little is asked for ahead, so that most of the epoch is still to come wherever it waits.
    with RemoteDataset(endpoint, stream="train", batch_size=16, prefetch_bytes=200_000, timeout=90) as train:
        for step, _ in enumerate(train, start=1):
            print(f"step {step}", flush=True)
            if str(step) in waits:
                sys.stdin.readline()
        print(f"digest {train.digest} of {train.stats.samples}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
