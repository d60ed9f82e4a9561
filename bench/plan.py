"""The plan: what ordering an epoch costs, by the number of blocks, and what finding a step's samples costs."""

from __future__ import annotations

from collections.abc import Sequence

from bench.results import Curve, Result, main
from bench.sides import Program, Side, median

__all__ = ["measure"]

BLOCKS = (10_000, 100_000, 1_000_000, 2_500_000, 10_000_000, 27_000_000)
HELD = 2_500_000
MOST_OFTEN = 3_000_000
"""Larger plans are made once: they take seconds."""


def measure(rounds: int = 5, *, blocks: Sequence[int] = BLOCKS, peers: bool = True) -> Result:
    """Make plans of growing size, each in a process of its own, and walk them."""
    result = Result(
        "plan",
        "an epoch's plan over blocks of about 40 samples, 256 lanes: seconds and memory to make it, and microseconds "
        "to find the 64 samples of a step of one of 8 ranks (median of 2,000 steps)",
    )
    points: dict[str, list[tuple[float, float]]] = {"s": [], "MB": [], "us": []}
    for count in blocks:
        with Side(Program("plan", "make_plan", (count,))) as side:
            side.wait()
            said = [side.round() for _ in range(rounds if count <= MOST_OFTEN else 1)]
        for unit, found in points.items():
            values = [each[unit] for each in said]
            found.append((count, median(values)))
            if count == HELD:
                result.add({"s": "making it", "MB": "memory", "us": "a step"}[unit], values, unit)
    for unit, what in (("s", "making a plan"), ("MB", "memory of a plan"), ("us", "finding a step's samples")):
        result.curves.append(Curve(what, "blocks", unit, points[unit]))
    if HELD in blocks:
        result.bound("making it", at_most=1.5)
        result.bound("memory", at_most=250)
        result.bound("a step", at_most=200)
    return result


if __name__ == "__main__":
    main(measure)
