"""Sides that do the same work in turn: processes that are up and warm before any clock runs, and what they took.

A side's clock runs in its own process, from asking for the first batch to holding the last one, so
that neither starting nor importing counts, nor what this process does. In each round every side
goes once through all samples, and is checked: what came must be every sample, once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bench.environments import Peer, python_of
from bench.programs.rounds import digest

__all__ = [
    "CORES",
    "NOTHING_KEPT",
    "Program",
    "Side",
    "alternate",
    "median",
    "opened",
    "ratio",
    "rows_apart",
    "same_rows",
]

CORES = len(os.sched_getaffinity(0))
NOTHING_KEPT = ("--answer-cache-bytes", "0")
"""What a server is told that is measured: its sides have equal plans, and one would get what was made for another."""

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True, slots=True)
class Program:
    """A side's name, its program in ``bench/programs``, and the peer whose environment it runs in, None for ours."""

    name: str
    program: str
    arguments: tuple[object, ...]
    peer: Peer | None = None


def opened(stack: ExitStack, programs: Iterable[Program], *, peers: bool) -> list[Side]:
    """Start a side for each program, to be ended with the stack; without ``peers`` only those of our environment."""
    sides = [stack.enter_context(Side(program)) for program in programs if peers or program.peer is None]
    for side in sides:
        side.wait()
    return sides


class Side(AbstractContextManager["Side"]):
    """A program in a process of its own."""

    def __init__(self, program: Program) -> None:
        """Start it."""
        self.name = program.name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self._process = subprocess.Popen(
            [python_of(program.peer), PROGRAMS / f"{program.program}.py", *map(str, program.arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def wait(self) -> None:
        """Wait until it is ready. Raises RuntimeError, with what it said, where it ended; so do the others."""
        self._read()

    def round(self) -> dict[str, Any]:
        """Let it go through its samples once, and return what it says of that."""
        return self._ask({})

    def rows(self, numbers: Sequence[int]) -> Mapping[str, NDArray[Any]]:
        """Let it go through its samples once, and return the rows of these, by number."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.npz"
            self._ask({"keep": list(numbers), "file": str(file)})
            with np.load(file) as kept:
                return dict(kept)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # some programs greet
                said: dict[str, Any] = json.loads(line)
                return said
        self._errors.seek(0)
        raise RuntimeError(f"{self.name} ended with {self._process.wait()}:\n{self._errors.read()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it: its standard input closes, and it has nothing more to answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def alternate(sides: Sequence[Side], rounds: int, samples: int) -> list[list[dict[str, Any]]]:
    """Return what each side said in each round, after one round to warm up.

    Raises AssertionError where a side did not bring every sample exactly once.
    """
    expected = digest(range(samples))
    outcomes: list[list[dict[str, Any]]] = [[] for _ in sides]
    for number in range(-1, rounds):
        for side, outcome in zip(sides, outcomes, strict=True):
            said = side.round()
            assert said["digest"] == expected, f"{side.name} brought {said['samples']} samples, not all {samples} once"
            if number >= 0:
                outcome.append(said)
    return outcomes


def rows_apart(one: Side, other: Side, numbers: Sequence[int], most: int, mean: float) -> tuple[int, float]:
    """Return how far the rows of two sides are apart, in levels: at most, and on average.

    Raises AssertionError where that is above ``most``, or ``mean``.
    """
    rows, others = one.rows(numbers), other.rows(numbers)
    for side, brought in ((one, rows), (other, others)):
        assert brought.keys() == {str(number) for number in numbers}, f"{side.name} lacks rows"
    apart = [np.abs(rows[number].astype(np.int16) - others[number]) for number in rows]
    greatest, average = max(int(row.max()) for row in apart), float(np.mean(apart))
    assert greatest <= most, f"{other.name} is {greatest} levels from {one.name}"
    assert average <= mean, f"{other.name} is on average {average:.2f} levels from {one.name}"
    return greatest, average


def same_rows(one: Side, other: Side, numbers: Sequence[int]) -> None:
    """Raise AssertionError unless both sides bring the same rows."""
    rows, others = one.rows(numbers), other.rows(numbers)
    assert rows.keys() == others.keys() == {str(number) for number in numbers}
    for number, row in rows.items():
        assert np.array_equal(row, others[number]), f"sample {number} of {other.name} is not that of {one.name}"


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios: a machine that slows down, slows both sides of a round."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))
