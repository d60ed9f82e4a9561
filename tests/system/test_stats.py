"""What a trainer's figures say it waits for, where that is known: a server, network or trainer made slow on purpose."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfeed import RemoteDataset
from tests.photographs import write_shards
from tests.server.test_http import metrics
from tests.system.loaders import Loader, wait_until

pytestmark = pytest.mark.xdist_group("stats")  # one process starts the server of all

SAMPLES, SIZE = 160, 4_000

SLOWLY = """
import time


def transform(sample):
    time.sleep(0.01)
    return sample
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stats")
    (folder / "slowly.py").write_text(SLOWLY)
    samples = [(f"{n:04d}", {"bin": bytes(SIZE), "cls": b"%d" % n}) for n in range(SAMPLES)]
    return write_shards(folder, samples, 2)


@pytest.fixture(scope="module")
def quick(shards: list[Path]) -> Iterator[Loader]:
    with Loader.of(shards, "--fields", "bin cls", "--workers", "1") as loader:
        yield loader


def test_a_slow_transform_is_called_decoding_and_the_server_counts_it_by_job_and_rank(shards: list[Path]) -> None:
    options = ("--fields", "bin cls", "--workers", "1", "--http", "127.0.0.1:0")
    slow = ("--transform", "slowly:transform", "--code-dir", str(shards[0].parent))
    with (
        Loader.of(shards, *options, *slow) as loader,
        RemoteDataset(loader.url, batch_size=8, rank=1, world_size=2, job="training", prefetch_bytes=1) as dataset,
    ):
        for _ in dataset:
            pass
        stats = dataset.stats
        assert stats.bottleneck == "decoding", stats
        assert re.search(r"^add loader servers: \d+ % of the waiting is decoding", stats.verdict)
        assert stats.waits.decoding.seconds > 0.5 * stats.waited
        assert stats.steps == SAMPLES // 16
        # Eight times 10 ms a batch, to the width of a bucket, and however slow this machine is.
        assert stats.waits.decoding.p50 > 0.05
        assert stats.wait.p99 >= stats.wait.p50

        next(iter(dataset))  # the requests of the next pass bring what the servers were not told yet
        (url,) = re.findall(r"^health and figures: (http://\S+?)/healthz", loader.output, re.MULTILINE)

        def told() -> dict[str, float]:
            name = "shardfeed_trainer_waiting_seconds_total"
            return {
                labels[0]: n
                for (each, labels), n in metrics(url).items()
                if each == name and labels[1:] == ("1", "training")
            }

        wait_until(lambda: told().get("decoding", 0) > 0.9 * stats.waits.decoding.seconds, what="the server's knowing")
        assert max(told(), key=lambda cause: told()[cause]) == "decoding"
        assert metrics(url)["shardfeed_trainer_steps_total", ("1", "training")] >= stats.steps


def test_a_trainer_that_takes_its_time_is_called_the_slower_one(quick: Loader) -> None:
    with RemoteDataset(quick.url, batch_size=8) as dataset:
        deadline = time.monotonic() + 30
        while dataset.stats.bottleneck != "none" or not dataset.stats.steps:  # a pass's first batch is waited for
            assert time.monotonic() < deadline, dataset.stats
            for _ in dataset:
                time.sleep(0.05)
        stats = dataset.stats
        assert re.fullmatch(r"the trainer is the slower one: it waited for [0-5] % of the time", stats.verdict)
        passes = dataset.epoch
        assert stats.seconds >= 0.05 * (stats.steps - passes)
        assert stats.samples_per_second == pytest.approx(passes * SAMPLES / stats.seconds)
        assert stats.bytes_per_second > SIZE * stats.samples_per_second


def test_a_narrow_network_is_called_the_wire(quick: Loader) -> None:
    port = quick.url.rpartition(":")[2]
    script = Path(__file__).with_name("narrow_proxy.py")
    with subprocess.Popen([sys.executable, str(script), port, "400_000"], stdout=subprocess.PIPE) as proxy:
        try:
            assert proxy.stdout is not None
            url = f"tcp://127.0.0.1:{int(proxy.stdout.readline())}"
            with RemoteDataset(url, batch_size=8) as dataset:
                for _ in dataset:
                    pass
                stats = dataset.stats
        finally:
            proxy.kill()
    assert stats.bottleneck == "wire", stats
    assert stats.verdict.startswith("look at the network, or send less: ")
    assert stats.waits.wire.seconds > 0.5 * stats.waited


def test_the_figures_add_up_survive_a_copy_and_read_well(quick: Loader) -> None:
    with RemoteDataset(quick.url, batch_size=8) as dataset:
        assert str(dataset.stats).splitlines()[-1] == "nothing was delivered yet"
        for _ in dataset:
            pass
        stats = dataset.stats
        assert sum(wait.seconds for _, wait in stats.waits) == pytest.approx(stats.waited)
        assert stats.waited <= stats.seconds
        assert stats.verdict in str(stats)
        assert stats.verdict in repr(stats)
        assert "\n" not in repr(stats)
        assert pickle.loads(pickle.dumps(stats)) == stats
        assert copy.deepcopy(dataset).stats.steps == stats.steps == SAMPLES // 8
