"""Every benchmark runs, and its sides bring the same samples; nothing is said here about time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bench.data
from bench.page import Found, read, write
from bench.results import Result
from bench.run import ROWS, load
from tests.interop.environments import CannotInstall
from tests.requirements import require

SMALL: dict[str, dict[str, Any]] = {
    "decode": {"samples": 32},
    "transport": {"samples": 32},
    "samehost": {"samples": 32},
    "small": {"samples": 64},
    "reading": {"samples": 16},
    "server_memory": {"samples": 32, "epochs": 2},
    "trainer_cpu": {"samples": 32},
    "where": {"samples": 32},
    "beginnings": {"samples": 32},
    "plan": {"blocks": (1000, 2000)},
    "growth": {"counts": (1,), "samples": 256, "seconds": 0.4, "sizes": (100, 1000)},
}


@pytest.fixture(autouse=True)
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.data, "CACHE", tmp_path)


QUICK = ("plan", "reading", "transport")
"""The others start servers for seconds each; they run with the long tests."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row in QUICK else [pytest.mark.peers]) for row in ROWS])
def test_our_own_sides_of_a_benchmark_bring_every_sample_once_and_the_same_rows(row: str) -> None:
    result = load(row)(1, peers=False, **SMALL[row])  # which raises where they do not
    assert result.row == row
    assert all(value >= 0 for figure in result.figures for value in figure.values)
    assert result.figures or result.curves


@pytest.mark.peers
@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", ["decode", "transport", "small"])
def test_all_sides_of_a_benchmark_bring_every_sample_once_and_the_same_rows(row: str) -> None:
    try:
        result = load(row)(1, **SMALL[row])
    except CannotInstall as error:
        require("peers", False, str(error))
        raise
    assert all(target.found > 0 for target in result.targets)


def result_of(row: str, ours: float) -> Result:
    result = Result(row, "what both did", "samples/s")
    result.add("ours", [ours, ours])
    result.add("theirs", [100.0, 100.0])
    result.ratio("ours", "theirs", at_least=2.0)
    return result


def test_the_page_says_where_we_lose_and_a_row_measured_again_leaves_the_others(tmp_path: Path) -> None:
    facts = dict.fromkeys(("date", "commit", "machine", "load", "system", "ours", "peers"), "a")
    found = {row: Found(result_of(row, ours), facts, "a command") for row, ours in (("one", 250.0), ("two", 150.0))}
    write(tmp_path, found)
    page = (tmp_path / "performance.md").read_text()
    lost = page.partition("## Where we lose")[2].partition("\n## ")[0]
    assert "[two](#two)" in lost
    assert "1.50 x, at least 2.00 x is asked" in lost
    assert "[one]" not in lost

    known = read(tmp_path / "performance.json")
    known["two"] = Found(result_of("two", 300.0), facts, "a command")
    write(tmp_path, known)
    again = (tmp_path / "performance.md").read_text()
    assert "every target is met" in again
    assert again.count("2.50 x") == page.count("2.50 x") > 0
    assert "</svg>" in (tmp_path / "performance.svg").read_text()
