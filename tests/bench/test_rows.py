"""Every benchmark runs, and its sides bring the same samples; nothing is said here about time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bench.data
from bench.run import ROWS, load
from tests.interop.environments import CannotInstall
from tests.requirements import require

SMALL: dict[str, dict[str, Any]] = {"decode": {"samples": 32}, "transport": {"samples": 32}}


@pytest.fixture(autouse=True)
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.data, "CACHE", tmp_path)


@pytest.mark.parametrize("row", ROWS)
def test_our_own_sides_of_a_benchmark_bring_every_sample_once_and_the_same_rows(row: str) -> None:
    result = load(row)(1, peers=False, **SMALL[row])  # which raises where they do not
    assert result.row == row
    assert all(value > 0 for figure in result.figures for value in figure.values)


@pytest.mark.peers
@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", ROWS)
def test_all_sides_of_a_benchmark_bring_every_sample_once_and_the_same_rows(row: str) -> None:
    try:
        result = load(row)(1, **SMALL[row])
    except CannotInstall as error:
        require("peers", False, str(error))
        raise
    assert all(target.found > 0 for target in result.targets)
