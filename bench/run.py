"""Runs rows of the benchmark, and writes what they found into docs/performance.md; see `scripts/bench`."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench.machine import facts
from bench.page import Found, read, write
from bench.results import Result
from tests.interop.environments import ROOT

__all__ = ["QUICK", "ROWS", "load"]

ROWS = (
    "decode",
    "transport",
    "samehost",
    "small",
    "reading",
    "server_memory",
    "trainer_cpu",
    "where",
    "beginnings",
    "plan",
    "growth",
)
"""Modules of this package, in the order of the page; each has ``measure(rounds, *, peers, ...)``."""

QUICK: Mapping[str, Mapping[str, Any]] = {"decode": {"samples": 1024}, "transport": {"samples": 4096}}
"""What `--quick` runs, and on how much."""

FOLDER = ROOT / "docs"


def load(row: str) -> Callable[..., Result]:
    """Return a row's ``measure``."""
    found: Callable[..., Result] = importlib.import_module(f"bench.{row}").measure
    return found


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which; all by default: {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often every side has its turn")
    parser.add_argument("--quick", action="store_true", help="the first two rows, on less, printed and not written")
    parser.add_argument("--page", action="store_true", help="write the page anew from what is known, measure nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are: {', '.join(ROWS)}")
    if arguments.quick:
        for row, smaller in QUICK.items():
            _show(row, arguments.rounds, **smaller)
        return
    known = read(FOLDER / "performance.json")
    for row in () if arguments.page else arguments.rows or ROWS:
        on = facts()
        command = f"scripts/bench {row}" + (f" --rounds {arguments.rounds}" if arguments.rounds != 5 else "")
        known[row] = Found(_show(row, arguments.rounds), on, command)
        write(FOLDER, {name: known[name] for name in ROWS if name in known})
    if arguments.page:
        write(FOLDER, {name: known[name] for name in ROWS if name in known})


def _show(row: str, rounds: int, **smaller: Any) -> Result:
    began = time.monotonic()
    result = load(row)(rounds, **smaller)
    print("\n".join(result.lines()))
    print(f"  took {time.monotonic() - began:.0f} s\n", flush=True)
    return result


if __name__ == "__main__":
    main()
