"""What a row found: figures of every side, what they are held against, and what else must be said."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.sides import median, ratio

__all__ = ["Curve", "Figure", "Result", "Target", "main"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One side's outcome: one value a round."""

    name: str
    values: list[float]
    unit: str


@dataclass(frozen=True, slots=True)
class Target:
    """What was asked of a number, and what it came to."""

    what: str
    found: float
    bound: float
    at_least: bool
    unit: str

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.found >= self.bound if self.at_least else self.found <= self.bound


@dataclass(frozen=True, slots=True)
class Curve:
    """How a cost grows: one point a measurement, ``y`` over ``x``."""

    name: str
    x: str
    y: str
    points: list[tuple[float, float]]


@dataclass(slots=True)
class Result:
    """One row of the page: ``row`` names it, ``work`` says what every side did."""

    row: str
    work: str
    unit: str = ""
    figures: list[Figure] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, values: Sequence[float], unit: str = "") -> None:
        """Add a side's values, one a round."""
        self.figures.append(Figure(name, list(values), unit or self.unit))

    def ratio(self, ours: str, theirs: str, *, at_least: float) -> None:
        """Hold one side's values against another's, where that took part: the median of the rounds' ratios."""
        values = {figure.name: figure.values for figure in self.figures}
        if theirs in values:
            found = ratio(values[ours], values[theirs])
            self.targets.append(Target(f"{ours} / {theirs}", found, at_least, True, "x"))

    def bound(self, name: str, *, at_most: float) -> None:
        """Hold the median of a figure against a bound."""
        figure = next(figure for figure in self.figures if figure.name == name)
        self.targets.append(Target(name, median(figure.values), at_most, False, figure.unit))

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Result:
        """Return what `as_json` was made of."""
        made = cls(given["row"], given["work"], given["unit"], notes=given["notes"])
        made.figures = [Figure(**each) for each in given["figures"]]
        made.targets = [Target(**each) for each in given["targets"]]
        made.curves = [
            Curve(each["name"], each["x"], each["y"], [(x, y) for x, y in each["points"]]) for each in given["curves"]
        ]
        return made

    def lines(self) -> list[str]:
        """Say it in lines, for a terminal."""
        said = [f"{self.row}: {self.work}"]
        for figure in self.figures:
            low, high = min(figure.values), max(figure.values)
            said.append(
                f"  {figure.name:<34} {number(median(figure.values)):>10} {figure.unit}  "
                f"({number(low)} .. {number(high)} in {len(figure.values)})"
            )
        for target in self.targets:
            asked = f"{'>=' if target.at_least else '<='} {number(target.bound)} {target.unit}"
            outcome = "met" if target.met else "MISSED"
            said.append(f"  {target.what:<34} {number(target.found):>10} {target.unit}  ({asked}: {outcome})")
        for curve in self.curves:
            said.append(f"  {curve.name}: {curve.y} by {curve.x}")
            said += [f"    {number(x):>12} {number(y):>12}" for x, y in curve.points]
        return [*said, *(f"  {note}" for note in self.notes)]


def number(value: float) -> str:
    """Write a number with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 1e-3 else f"{value:.{2 if value < 10 else 1}f}" if value >= 1 else f"{value:.3f}"


def main(measure: Callable[[int], Result]) -> None:
    """Run one row from the command line: ``--rounds N``, and ``--json`` for the whole result."""
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often every side has its turn")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    print(json.dumps(result.as_json()) if arguments.json else "\n".join(result.lines()))
