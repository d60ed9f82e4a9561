"""The page of figures, docs/performance.md, and its drawings: made wholly of what the rows found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.plot import bars, curves
from bench.results import Result, Target, number
from bench.sides import median

__all__ = ["Found", "read", "write"]

HEAD = """\
# Performance

Every figure here was written by `scripts/bench`, which measures all sides in turn on one machine and checks that they
did the same work. Machines are shared and noisy: what counts is the ratio of two sides within a round. A ratio is the
median over the rounds, a figure the median of its side. `scripts/bench --quick` prints the first two rows in about a
minute. What each side runs is in `bench/programs`.

SCTP, which needs a guest kernel here, is measured apart: [SCTP in a guest](performance-sctp.md).
"""


class Found:
    """What is known of each row: its result, the facts of the machine, and the command."""

    def __init__(self, result: Result, facts: Mapping[str, str], command: str) -> None:
        self.result, self.facts, self.command = result, facts, command


def read(path: Path) -> dict[str, Found]:
    """Return what earlier runs found, by row."""
    if not path.exists():
        return {}
    rows = json.loads(path.read_text())
    return {row: Found(Result.from_json(each["result"]), each["facts"], each["command"]) for row, each in rows.items()}


def write(folder: Path, found: Mapping[str, Found]) -> None:
    """Write performance.json, performance.md and the drawings into the folder."""
    rows = {
        row: {"command": each.command, "facts": each.facts, "result": each.result.as_json()}
        for row, each in found.items()
    }
    (folder / "performance.json").write_text(json.dumps(rows, indent=1) + "\n")
    results = [each.result for each in found.values()]
    (folder / "performance.svg").write_text(bars(results))
    (folder / "performance-growth.svg").write_text(curves([curve for result in results for curve in result.curves]))
    (folder / "performance.md").write_text("\n".join(_page(found)) + "\n")


def _page(found: Mapping[str, Found]) -> Iterator[str]:
    yield HEAD
    yield "![Ratios and their targets](performance.svg)\n"
    targets = [(row, target) for row, each in found.items() for target in each.result.targets]
    yield "## Targets\n"
    yield from _targets(targets)
    missed = [(row, target) for row, target in targets if not target.met]
    yield "\n## Where we lose\n"
    if missed:
        yield from (
            f"- {target.what} ([{row}](#{row})): {_value(target)}, {_asked(target)} is asked." for row, target in missed
        )
    else:
        yield "Nowhere in this run: every target is met."
    yield from (line for each in found.values() for line in _row(each))
    yield "\n## How cost grows\n"
    yield "![Curves](performance-growth.svg)\n"
    yield "Both axes of each drawing are logarithmic; the numbers are in `performance.json`.\n"
    yield from _machines(found)


def _targets(targets: Sequence[tuple[str, Target]]) -> Iterator[str]:
    yield "| row | what | target | found | |"
    yield "|---|---|---|---|---|"
    for row, target in targets:
        outcome = "met" if target.met else "**missed**"
        yield f"| [{row}](#{row}) | {target.what} | {_asked(target)} | {_value(target)} | {outcome} |"


def _asked(target: Target) -> str:
    return f"{'at least' if target.at_least else 'at most'} {number(target.bound)} {target.unit}"


def _value(target: Target) -> str:
    return f"{number(target.found)} {target.unit}"


def _row(each: Found) -> Iterator[str]:
    result = each.result
    yield f"\n## {result.row}\n"
    yield f"{result.work[0].upper()}{result.work[1:]}.\n"
    if result.figures:
        yield "| side | median | least .. most | rounds |"
        yield "|---|---|---|---|"
    for figure in result.figures:
        low, high = min(figure.values), max(figure.values)
        yield (
            f"| {figure.name} | {number(median(figure.values))} {figure.unit} | {number(low)} .. {number(high)} "
            f"| {len(figure.values)} |"
        )
    for curve in result.curves:
        yield f"\n{curve.name}, {curve.y}:\n"
        yield "| " + " | ".join([curve.x, *(f"{x:,.0f}" for x, _ in curve.points)]) + " |"
        yield "|---" * (len(curve.points) + 1) + "|"
        yield "| " + " | ".join([curve.y, *(number(y) for _, y in curve.points)]) + " |"
    yield from (f"\n{note}" for note in result.notes)
    yield f"\n`{each.command}`"


def _machines(found: Mapping[str, Found]) -> Iterator[str]:
    """Say on what was measured; rows that were measured together share a line."""
    yield "## Where it was measured\n"
    yield "| rows | date, commit | machine | load | system | versions |"
    yield "|---|---|---|---|---|---|"
    together: dict[tuple[str, ...], list[str]] = {}
    for row, each in found.items():
        of = each.facts
        key = (f"{of['date']}, {of['commit']}", of["machine"], of["system"], f"{of['ours']}; {of['peers']}")
        together.setdefault(key, []).append(f"{row} ({of['load']})")
    for (when, machine, system, versions), rows in together.items():
        names = ", ".join(row.partition(" ")[0] for row in rows)
        loads = ", ".join(row.partition("(")[2].partition(" ")[0] for row in rows)
        yield f"| {names} | {when} | {machine} | {loads} | {system} | {versions} |"
