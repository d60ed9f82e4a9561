"""Transport-bound: uint8 arrays, nothing decoded, over TCP on the loopback, against bare transports."""

from __future__ import annotations

from contextlib import ExitStack

from bench.data import arrays
from bench.environments import ARROW, TENSORCOM
from bench.results import Result, main
from bench.sides import NOTHING_KEPT, Program, alternate, opened, same_rows
from tests.system.loaders import Loader

__all__ = ["measure"]

BATCH = 64


def measure(rounds: int = 5, *, samples: int = 8192, peers: bool = True) -> Result:
    """Compare the whole path with raw pyzmq, Arrow Flight and tensorcom, which only send what lies in memory."""
    shards, file = arrays(samples)
    size = min(BATCH, samples)
    with ExitStack() as stack:
        server = stack.enter_context(Loader.of(shards, "--fields", "npy cls", *NOTHING_KEPT))
        ours, *others = sides = opened(
            stack,
            [
                Program("shardfeed", "ours", (server.url, size, "tcp")),
                Program("raw pyzmq", "raw_zmq", (file, size)),
                Program("Arrow Flight", "arrow_flight", (file, size), ARROW),
                Program("tensorcom", "tensorcom_multipart", (file, size), TENSORCOM),
            ],
            peers=peers,
        )
        for other in others:
            same_rows(ours, other, range(0, samples, max(1, samples // 16)))
        outcomes = alternate(sides, rounds, samples)
    result = Result(
        "transport",
        f"{samples:,} uint8 arrays of 224 x 224 x 3 in batches of {size} ({size * 150_528 / 1e6:.1f} MB), over TCP on "
        "the loopback. shardfeed reads them from shards, in random order; the others send what lies in memory",
        "GB/s",
    )
    for side, said in zip(sides, outcomes, strict=True):
        result.add(side.name, [samples * 150_528 / each["seconds"] / 1e9 for each in said])
    result.ratio("shardfeed", "raw pyzmq", at_least=0.95)
    result.ratio("shardfeed", "Arrow Flight", at_least=1.4)
    result.ratio("shardfeed", "tensorcom", at_least=1.6)
    return result


if __name__ == "__main__":
    main(measure)
