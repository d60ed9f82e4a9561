"""A trainer on the server's machine: answers borrowed as memory, against the same over TCP."""

from __future__ import annotations

from contextlib import ExitStack

from bench.data import arrays
from bench.results import Result, main
from bench.sides import NOTHING_KEPT, Program, alternate, opened, same_rows
from tests.system.loaders import Loader

__all__ = ["measure"]

BATCH = 64


def measure(rounds: int = 5, *, samples: int = 8192, peers: bool = True) -> Result:
    """Compare the two ways between one server and one trainer of the same machine."""
    shards, _ = arrays(samples)
    size = min(BATCH, samples)
    with ExitStack() as stack:
        server = stack.enter_context(Loader.of(shards, "--fields", "npy cls", *NOTHING_KEPT))
        sides = opened(
            stack,
            [
                Program("shared memory", "ours", (server.url, size, "shared", "touch")),
                Program("TCP", "ours", (server.url, size, "tcp", "touch")),
            ],
            peers=peers,
        )
        same_rows(*sides, range(0, samples, max(1, samples // 16)))
        outcomes = alternate(sides, rounds, samples)
    result = Result(
        "samehost",
        f"{samples:,} uint8 arrays of 224 x 224 x 3 in batches of {size}, from one server to a trainer beside it, "
        "which reads a byte of each page",
        "GB/s",
    )
    for side, said in zip(sides, outcomes, strict=True):
        result.add(side.name, [samples * 150_528 / each["seconds"] / 1e9 for each in said])
    result.ratio("shared memory", "TCP", at_least=2.5)
    return result


if __name__ == "__main__":
    main(measure)
