"""How many workers a server is best given, and requests a trainer best has under way, on this machine.

The whole path, photographs, one trainer. ``python -m bench.workers`` prints medians of seven rounds, in each of which
all take turns; the figures of `docs/configuration.md` come from here.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from bench.data import photographs
from bench.sides import CORES, NOTHING_KEPT, Program, opened
from tests.system.loaders import Loader

SAMPLES, BATCH, ROUNDS = 1024, 64, 7
WORKERS = range(1, CORES + 3)


def _compare(programs: list[Program], usual: str, what: str) -> None:
    with ExitStack() as stack:
        sides = opened(stack, programs, peers=True)
        rates: dict[str, list[float]] = {side.name: [] for side in sides}
        for _ in range(ROUNDS):
            for side in sides:
                rates[side.name].append(SAMPLES / side.round()["seconds"])
    for name, found in rates.items():
        ratio = statistics.median(one / other for one, other in zip(found, rates[usual], strict=True))
        print(f"{name} {what}: {statistics.median(found):7,.0f} samples/s, {ratio:.2f} of {usual}")


def main() -> None:
    shards = photographs(SAMPLES)
    options = ("--resize", "224x224", "--fields", "jpg cls", *NOTHING_KEPT)
    with ExitStack() as stack:
        urls = {n: stack.enter_context(Loader.of(shards, *options, "--workers", str(n))).url for n in WORKERS}
        _compare([Program(str(n), "seeded", (url, BATCH, 0)) for n, url in urls.items()], str(CORES), "workers")
        url = urls[CORES]
        usual = 2 * CORES + 1
        programs = [Program(str(n), "seeded", (url, BATCH, 0, n)) for n in (CORES, CORES + 1, usual, 2 * usual)]
        _compare(programs, str(usual), "requests under way")


if __name__ == "__main__":
    main()
