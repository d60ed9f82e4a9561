"""Reading shards: `tariterator(decoder=False)` against Python's tarfile, in one process each."""

from __future__ import annotations

from contextlib import ExitStack

from bench.data import blobs
from bench.results import Result, main
from bench.sides import Program, alternate, opened, same_rows

__all__ = ["measure"]


def measure(rounds: int = 5, *, samples: int = 4096, peers: bool = True) -> Result:
    """Compare how fast samples of 100 kB are read from shards in the page cache."""
    shards = blobs(samples)
    with ExitStack() as stack:
        sides = opened(
            stack,
            [
                Program("tariterator", "read_tariterator", tuple(shards)),
                Program("tarfile", "read_tarfile", tuple(shards)),
                Program("pread alone", "read_bare", tuple(shards)),
            ],
            peers=peers,
        )
        for other in sides[1:]:
            same_rows(sides[0], other, range(0, samples, max(1, samples // 16)))
        outcomes = alternate(sides, rounds, samples)
    result = Result(
        "reading",
        f"{samples:,} samples of 100,000 bytes and a class, read from shards in the page cache, one process each. "
        "The third side knows where each byte lies and only copies it: what no reader can be faster than",
        "samples/s",
    )
    for side, said in zip(sides, outcomes, strict=True):
        result.add(side.name, [each["samples"] / each["seconds"] for each in said])
    result.ratio("tariterator", "tarfile", at_least=4.0)
    return result


if __name__ == "__main__":
    main(measure)
