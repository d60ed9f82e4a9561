"""What two trainers over one server get, with equal seeds and with different ones, beside one alone.

``python -m bench.equal_trainers`` prints medians of seven rounds, in each of which all three take turns; the figures
of `docs/howto/equal-trainers.md` come from here.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from bench.data import photographs
from bench.sides import CORES, Program, Side, opened
from tests.system.loaders import Loader

SAMPLES, BATCH, ROUNDS = 1024, 64, 7


def _rate(sides: list[Side]) -> float:
    """Samples a second of each of some trainers that go through an epoch at the same time."""
    with ThreadPoolExecutor(len(sides)) as pool:
        return SAMPLES / max(said["seconds"] for said in pool.map(Side.round, sides))


def main() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(
            Loader.of(photographs(SAMPLES), "--resize", "224x224", "--fields", "jpg cls", "--workers", str(CORES))
        )
        seeds = {"one alone": [0], "two with equal seeds": [1, 1], "two with different seeds": [2, 3]}
        ways = {
            way: opened(
                stack,
                [Program(f"{way} {n}", "seeded", (server.url, BATCH, seed)) for n, seed in enumerate(each)],
                peers=True,
            )
            for way, each in seeds.items()
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, sides in ways.items():
                rates[way].append(_rate(sides))
    alone = rates["one alone"]
    for way, found in rates.items():
        ratio = statistics.median(one / other for one, other in zip(found, alone, strict=True))
        print(f"{way:<25} {statistics.median(found):7,.0f} samples/s each, {ratio:.2f} of one alone")


if __name__ == "__main__":
    main()
