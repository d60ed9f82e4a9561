"""`shardfeed bench` measures servers that run, as a trainer sees them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import run
from tests.photographs import Photographs
from tests.system.loaders import Loader, write_photographs

pytestmark = pytest.mark.xdist_group("bench")  # one process starts the server of all


@pytest.fixture(scope="module")
def server(thumbnails: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    shards = write_photographs(tmp_path_factory.mktemp("bench"), thumbnails[:24], count=2)
    with Loader.of(shards, "--workers", "1") as loader:
        yield loader


def test_a_trainer_that_is_busy_gets_no_more_than_it_takes_over_several_epochs(server: Loader) -> None:
    done = run("bench", server.url, "--batch-size", "8", "--seconds", "1.0", "--step", "0.05", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["samples"] == 8 * found["steps"] > 24
    assert found["samples_per_second"] == pytest.approx(found["samples"] / found["seconds"])
    assert 0 < found["samples_per_second"] <= 8 / 0.05 * 1.2  # the first batch needs no step before it
    assert found["bytes_per_second"] > 32 * 32 * 3 * found["samples_per_second"]
    assert found["first_batch"] > 0
    assert found["rows_sent"] > 0  # counted for a pass, which ends with the command
    assert found["wait"]["p50"] <= found["wait"]["p99"]


def test_it_says_rates_waits_and_a_verdict_in_words(server: Loader) -> None:
    done = run("bench", server.url, "--batch-size", "8", "--seconds", "0.2")
    assert done.returncode == 0, done.stderr
    assert re.match(r"the first batch came after [\d.e+]+ ms\n", done.stdout)
    assert re.search(r"[\d,]+ samples/s, [\d,.]+ MB/s\n", done.stdout)
    assert "a batch p50 " in done.stdout


def test_an_endpoint_where_nobody_listens_is_an_error_that_names_it(tmp_path: Path) -> None:
    done = run("bench", f"ipc://{tmp_path}/nobody", "--stream", "train", "--timeout", "0.3")
    assert done.returncode == 1
    assert f"ipc://{tmp_path}/nobody" in done.stderr
