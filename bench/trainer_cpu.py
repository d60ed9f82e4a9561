"""The trainer's CPU: what it costs to receive a gigabyte, threads of the network included."""

from __future__ import annotations

from contextlib import ExitStack

from bench.data import arrays
from bench.results import Result, main
from bench.sides import NOTHING_KEPT, Program, alternate, opened
from tests.system.loaders import Loader

__all__ = ["measure"]

BATCH = 64


def measure(rounds: int = 5, *, samples: int = 8192, peers: bool = True) -> Result:
    """Count the CPU seconds of the trainer's whole process over a pass of batches of 9.6 MB."""
    shards, file = arrays(samples)
    size = min(BATCH, samples)
    with ExitStack() as stack:
        server = stack.enter_context(Loader.of(shards, "--fields", "npy cls", *NOTHING_KEPT))
        sides = opened(
            stack,
            [Program("shardfeed", "ours", (server.url, size, "tcp")), Program("raw pyzmq", "raw_zmq", (file, size))],
            peers=peers,
        )
        outcomes = alternate(sides, rounds, samples)
    result = Result(
        "trainer_cpu",
        f"CPU of the process that receives {samples:,} uint8 arrays of 224 x 224 x 3 in batches of {size} over TCP on "
        "the loopback: user and system, all threads. At 1 GB/s it is the share of a core",
        "s / GB",
    )
    for side, said in zip(sides, outcomes, strict=True):
        result.add(side.name, [each["cpu"] / (samples * 150_528 / 1e9) for each in said])
    result.bound("shardfeed", at_most=0.35)
    return result


if __name__ == "__main__":
    main(measure)
