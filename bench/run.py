"""Runs rows of the benchmark and says what they found; `scripts/bench` is how it is called."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench.results import Result

__all__ = ["QUICK", "ROWS", "load"]

ROWS = ("decode", "transport")
"""Modules of this package, in the order of the page; each has ``measure(rounds, *, peers, ...)``."""

QUICK: Mapping[str, Mapping[str, Any]] = {"decode": {"samples": 1024}, "transport": {"samples": 4096}}
"""What `--quick` runs, and on how much."""


def load(row: str) -> Callable[..., Result]:
    """Return a row's ``measure``."""
    found: Callable[..., Result] = importlib.import_module(f"bench.{row}").measure
    return found


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which; all by default: {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often every side has its turn")
    parser.add_argument("--quick", action="store_true", help="the first two rows, on less")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are: {', '.join(ROWS)}")
    for row in arguments.rows or (QUICK if arguments.quick else ROWS):
        began = time.monotonic()
        result = load(row)(arguments.rounds, **(QUICK[row] if arguments.quick else {}))
        print("\n".join(result.lines()))
        print(f"  took {time.monotonic() - began:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
