"""``scripts/simulate``: many seeds over all processors, or one seed again, with everything that the fetcher did."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from shardfeed.fetcher import Fetcher
from tests.client.simulation import Schedule, simulate

CHUNK = 50

Tally = tuple[Counter[str], Counter[str], list[str]]


class _Told(Fetcher):
    """A fetcher that prints each event but ticks, and what it does about it."""

    def handle(self, event: Any, now: float) -> list[Any]:
        actions = super().handle(event, now)
        if actions or type(event).__name__ != "Tick":
            print(f"{now:9.3f} s  {_short(event)}" + "".join(f"\n{'':13}-> {_short(action)}" for action in actions))
        return actions


def _short(thing: object) -> str:
    """An event or action without its arrays."""
    words = [type(thing).__name__]
    for name in getattr(type(thing), "__slots__", ()):
        value = getattr(thing, name)
        if name == "piece":
            value = f"step {value.step.number}, {value.rows} rows of shards {sorted(value.shards)}"
        elif name == "step":
            value = value.number
        elif name in ("answer", "pieces"):
            continue
        words.append(f"{name}={value}")
    return " ".join(words)


def replay(seed: int) -> None:
    """Run one seed, and print all of it."""
    print(Schedule.of(random.Random(seed)))
    print(simulate(seed, _Told))


def _run(seeds: range) -> Tally:
    happened: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    broken = []
    for seed in seeds:
        try:
            outcome = simulate(seed)
        except Exception as error:
            broken.append(f"seed {seed}: {type(error).__name__}: {error}\n  again: scripts/simulate --seed {seed}")
        else:
            happened += outcome.happened
            ends["delivered all" if outcome.error is None else type(outcome.error).__name__] += 1
    return happened, ends, broken


def _chunks(first: int, schedules: int) -> Iterator[range]:
    for start in range(first, first + schedules, CHUNK):
        yield range(start, min(start + CHUNK, first + schedules))


def run_many(first: int, schedules: int, processes: int) -> int:
    """Run seeds; print the figures. Returns the exit status: 1 where a promise was broken."""
    started = time.monotonic()
    happened: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    broken: list[str] = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, (more, others, failed) in enumerate(pool.imap(_run, _chunks(first, schedules))):
            happened += more
            ends += others
            broken += failed
            print("".join(f"{line}\n" for line in failed), end="", flush=True)
            if (number + 1) % 100 == 0:
                done = sum(ends.values()) + len(broken)
                print(f"{done:,} of {schedules:,}, {done / (time.monotonic() - started):.0f} a second", flush=True)
    seconds = time.monotonic() - started
    print(f"{schedules:,} schedules in {seconds:.0f} s, {schedules / seconds:.0f} a second, {processes} processes")
    print("they ended so: " + ", ".join(f"{name} {count:,}" for name, count in ends.most_common()))
    print("on the way: " + ", ".join(f"{name} {count:,}" for name, count in sorted(happened.items())))
    print(f"{len(broken)} broke a promise" if broken else "none broke a promise")
    return 1 if broken else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, help="run this seed alone, and print what the fetcher does")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        replay(chosen.seed)
        return 0
    return run_many(chosen.first, chosen.schedules, chosen.processes)


if __name__ == "__main__":
    sys.exit(main())
