"""What a trainer waits for when it begins, goes on in mid-epoch, and passes from one epoch to the next."""

from __future__ import annotations

from contextlib import ExitStack

from bench.data import photographs
from bench.results import Result, main
from bench.sides import CORES, NOTHING_KEPT, Program, opened
from tests.system.loaders import Loader

__all__ = ["measure"]

BATCH = 64


def measure(rounds: int = 5, *, samples: int = 2048, peers: bool = True) -> Result:
    """Time the first batch after `iter`, of a new object and of one that resumes, and the gap between epochs."""
    with ExitStack() as stack:
        server = stack.enter_context(
            Loader.of(
                photographs(samples),
                "--resize",
                "224x224",
                "--fields",
                "jpg cls",
                "--workers",
                str(CORES),
                *NOTHING_KEPT,
            )
        )
        size = min(BATCH, samples // 4)
        (side,) = opened(stack, [Program("shardfeed", "begin", (server.url, size))], peers=peers)
        said = [side.round() for _ in range(rounds + 1)][1:]
    result = Result(
        "beginnings",
        f"{samples:,} photographs in batches of {size}, a server that is up, its manifest on the client's disk",
        "s",
    )
    for name, key in (
        ("first batch, new object, connecting", "fresh"),
        ("first batch of a new epoch", "again"),
        ("first batch, resumed in mid-epoch", "resumed"),
    ):
        result.add(name, [each[key] for each in said])
        result.bound(name, at_most=0.25)
    result.add("gap between epochs, in gaps of steps", [each["gap"] for each in said], "x")
    result.bound("gap between epochs, in gaps of steps", at_most=2.0)
    return result


if __name__ == "__main__":
    main(measure)
