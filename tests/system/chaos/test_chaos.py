"""An epoch while servers are killed, stopped, drained and started again: both ranks receive what they always do."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.chaos.cluster import Cluster, Faults, Rank, servers_of, write_small_pictures

SEED = int(os.environ.get("CHAOS_SEED", "0"))
STOPPED = 4.0


@pytest.fixture(scope="module")
def long_shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_small_pictures(tmp_path_factory.mktemp("chaos"), samples=3000, shards=7)


@pytest.fixture(scope="module")
def short_shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_small_pictures(tmp_path_factory.mktemp("little-chaos"), samples=400, shards=3)


def read_epoch(endpoints: list[str], during: Callable[[list[Rank]], None]) -> list[Rank]:
    """Read an epoch on two ranks while something is done."""
    ranks = [Rank(endpoints, rank, timeout=60) for rank in range(2)]
    for rank in ranks:
        rank.start()
    try:
        during(ranks)
    finally:
        for rank in ranks:
            rank.join()
    for rank in ranks:
        if rank.error is not None:
            raise rank.error
    return ranks


def undisturbed(shards: list[Path]) -> list[Rank]:
    with servers_of(shards, 0.0) as server:
        server.wait_ready()
        return read_epoch([server.url], lambda _: None)


def check_same(ranks: list[Rank], expected: list[Rank], samples: int) -> None:
    for rank, other in zip(ranks, expected, strict=True):
        assert [batch[0] for batch in rank.batches] == [batch[0] for batch in other.batches]
        assert rank.batches == other.batches
        assert rank.dataset.digest == other.dataset.digest
    assert len(ranks[0].batches) == len(ranks[1].batches)
    keys = [
        key for rank in ranks for _, keys, _, valid in rank.batches for key, ok in zip(keys, valid, strict=True) if ok
    ]
    assert len(keys) == len(set(keys)) == samples


@pytest.fixture
def cluster_of() -> Iterator[Callable[[list[Path], float], Cluster]]:
    made: list[Cluster] = []

    def make(shards: list[Path], seconds: float) -> Cluster:
        made.append(Cluster(shards, seconds))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def torment(cluster: Cluster, every: float, seed: int = SEED) -> tuple[list[Rank], Faults]:
    faults: list[Faults] = []

    def during(ranks: list[Rank]) -> None:
        faults.append(Faults(cluster, ranks, seed))
        faults[0].torment(every)

    return read_epoch(cluster.urls, during), faults[0]


def test_a_few_faults_change_nothing_that_two_ranks_receive(
    cluster_of: Callable[[list[Path], float], Cluster], short_shards: list[Path]
) -> None:
    expected = undisturbed(short_shards)
    ranks, faults = torment(cluster_of(short_shards, 0.01), every=0.3)
    check_same(ranks, expected, 400)
    assert faults.total >= 3


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_thirty_faults_over_an_epoch_change_nothing_that_two_ranks_receive(
    cluster_of: Callable[[list[Path], float], Cluster], long_shards: list[Path]
) -> None:
    expected = undisturbed(long_shards)
    counts: Counter[str] = Counter()
    for round_number in range(4):  # how many faults fit into one epoch is the machine's affair
        began = time.monotonic()
        ranks, faults = torment(cluster_of(long_shards, 0.03), every=0.7, seed=SEED + round_number)
        check_same(ranks, expected, 3000)
        counts += faults.counts
        print(f"{faults.total} faults in {time.monotonic() - began:.0f} s: {dict(faults.counts)}")
        if counts.total() >= 30 and all(counts[kind] for kind in ("kill", "stop", "drain")):
            return
    pytest.fail(f"too few faults hit a server with requests outstanding: {dict(counts)}")


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_all_servers_stopped_for_some_seconds_cost_no_more_than_these(
    cluster_of: Callable[[list[Path], float], Cluster], short_shards: list[Path]
) -> None:
    expected = undisturbed(short_shards)
    cluster = cluster_of(short_shards, 0.04)

    def stop_all(ranks: list[Rank]) -> None:
        while not all(rank.batches for rank in ranks):
            time.sleep(0.01)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for loader in cluster.loaders:
                loader.tell(number)
            if number == signal.SIGSTOP:
                time.sleep(STOPPED)

    ranks = read_epoch(cluster.urls, stop_all)
    check_same(ranks, expected, 400)
    waits = [rank.longest_wait for rank in ranks]
    assert STOPPED / 2 < max(waits) < STOPPED + 2
    assert [rank.stats.evacuated for rank in ranks] == [0, 0]
