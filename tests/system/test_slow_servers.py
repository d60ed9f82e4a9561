"""What slow and busy servers cost: medians over epochs from real server processes, whose transforms take their time."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfeed import RemoteDataset
from shardfeed.stats import Stats
from tests.system.chaos.cluster import servers_of, write_small_pictures
from tests.system.loaders import Loader

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

SAMPLES = 2000
USUAL, SLOW = 0.005, 0.1
EPOCHS = 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_small_pictures(tmp_path_factory.mktemp("slow"), SAMPLES, shards=4)


@contextlib.contextmanager
def servers(shards: list[Path], *seconds_a_sample: float) -> Iterator[list[Loader]]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(servers_of(shards, seconds)) for seconds in seconds_a_sample]
        for loader in made:
            loader.wait_ready()
        yield made


def epochs(loaders: list[Loader]) -> tuple[float, list[Stats]]:
    """Read epochs as fast as they come; returns the median of their seconds, and the figures after each."""
    taken, figures = [], []
    with RemoteDataset([loader.url for loader in loaders], batch_size=32) as dataset:
        len(dataset)  # connects
        for _ in range(EPOCHS):
            began = time.monotonic()
            assert sum(len(labels) for _, labels in dataset) == SAMPLES
            taken.append(time.monotonic() - began)
            figures.append(dataset.stats)
    return statistics.median(taken), figures


def test_a_server_twenty_times_slower_costs_an_epoch_less_than_a_third_more(shards: list[Path]) -> None:
    with servers(shards, USUAL, USUAL, SLOW) as (one, two, slow):
        without, _ = epochs([one, two])
        seconds, _ = epochs([one, two, slow])
    print(f"{seconds:.2f} s with the slow server, {without:.2f} s without: {seconds / without:.2f} times")
    assert seconds < 1.3 * without


def test_three_healthy_saturated_servers_lose_little_to_second_requests(shards: list[Path]) -> None:
    with servers(shards, USUAL, USUAL, USUAL) as loaders:
        _, figures = epochs(loaders)
    lost = [stats.rows_hedged / stats.rows_sent for stats in figures]
    print(f"asked for twice: {', '.join(f'{part:.1%}' for part in lost)} of the rows")
    assert statistics.median(lost) < 0.03
