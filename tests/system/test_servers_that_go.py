"""Servers and workers that die, drain and change under a running epoch: nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shardfeed import RemoteDataset, SampleError, ShardError, StarvedError
from tests.photographs import Photographs, write_shards
from tests.system.loaders import Loader, wait_until, write_photographs
from webdataset.indexing import index_shards

pytestmark = pytest.mark.xdist_group("servers-that-go")  # the server that stays is there for all

SAMPLES = 600


@pytest.fixture(scope="module")
def shards(photographs_of: Callable[[int, int], Photographs], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    # Large enough that an epoch takes a while, and no server needs torch to resize them.
    return write_photographs(tmp_path_factory.mktemp("faults"), photographs_of(256, 192)[:SAMPLES], count=4)


OPTIONS = ("--workers", "1")


@pytest.fixture(scope="module")
def steady(shards: list[Path]) -> Iterator[Loader]:
    with Loader.of(shards, *OPTIONS) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(steady: Loader) -> str:
    with RemoteDataset(steady.url, batch_size=32) as dataset:
        assert sum(len(labels) for _, labels in dataset) == SAMPLES
        return dataset.digest


def test_a_server_killed_in_mid_epoch_hands_its_requests_to_the_others(
    steady: Loader, shards: list[Path], undisturbed: str
) -> None:
    with Loader.of(shards, *OPTIONS) as victim, RemoteDataset([victim.url, steady.url], batch_size=32) as dataset:
        for step, _ in enumerate(dataset):
            if step == 3:
                victim.kill()
        assert dataset.digest == undisturbed


def test_a_server_told_to_stop_answers_what_is_under_way_and_ends_with_0(
    steady: Loader, shards: list[Path], undisturbed: str
) -> None:
    with Loader.of(shards, *OPTIONS) as leaver, RemoteDataset([leaver.url, steady.url], batch_size=32) as dataset:
        for step, _ in enumerate(dataset):
            if step == 3:  # all its processes, as `timeout`, Slurm and a terminal do
                front = psutil.Process(leaver.process.pid)
                for process in [*front.children(recursive=True), front]:
                    process.terminate()
        assert dataset.digest == undisturbed
        assert leaver.wait() == 0
        assert "died" not in leaver.output


def test_workers_killed_in_mid_epoch_are_replaced_and_nobody_notices(steady: Loader, undisturbed: str) -> None:
    with RemoteDataset(steady.url, batch_size=32) as dataset:
        for step, _ in enumerate(dataset):
            if step in (2, 6):
                for worker in steady.workers():
                    worker.kill()
        assert dataset.digest == undisturbed
    wait_until(lambda: len(steady.workers()) == 1, what="a new worker")


def test_a_server_answers_while_what_starts_its_workers_was_killed_and_starts_again(
    shards: list[Path], undisturbed: str
) -> None:
    options = ["--fields", "jpg;png cls", "--resize", "64x64", *OPTIONS, "--bind", "tcp://127.0.0.1:0"]
    with Loader([*shards, *options], http="127.0.0.1:0") as server:
        (url,) = re.findall(r"^health and figures: (http://\S+?/healthz)", server.output, re.MULTILINE)
        (starter,) = {worker.parent() for worker in server.workers()}
        with RemoteDataset(server.url, batch_size=32) as dataset:
            for step, _ in enumerate(dataset):
                if step == 2:
                    starter.kill()
                    wait_until(lambda: "a worker died" in server.output, what="the word of it")
                    # It imports torch, which takes seconds, in which the front must not wait for it.
                    with urllib.request.urlopen(url, timeout=20) as answer:
                        assert answer.read() == b"alive\n"
                    assert server.workers() == []
            assert dataset.digest == undisturbed
        wait_until(lambda: len(server.workers()) == 1, what="a new worker")


@pytest.mark.parametrize("cache", ["there", "nowhere"])
def test_a_manifest_that_is_written_over_in_mid_epoch_disturbs_nobody(
    shards: list[Path], undisturbed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    manifest = tmp_path / "train.ten"
    index_shards(shards).save(manifest)
    if cache == "nowhere":
        monkeypatch.setenv("XDG_CACHE_HOME", str(manifest))  # no folder, so that even root cannot write there
    options = ("--manifest", str(manifest), *OPTIONS)
    with Loader.of(shards, *options) as server, RemoteDataset(server.url, batch_size=32) as dataset:
        for step, _ in enumerate(dataset):
            if step == 2:
                manifest.write_bytes(b"")  # as cp does first: what is mapped of it would be a bus error
                server.workers()[0].kill()  # the next one finds the manifest, too
        assert dataset.digest == undisturbed
        assert ("set XDG_CACHE_HOME" in server.output) == (cache == "nowhere")


def test_a_server_without_a_descriptor_left_says_so_and_goes_on_when_it_has_some(tmp_path: Path) -> None:
    # Small samples first, so that the connection stands when answers begin to need memory that is new.
    texts = [b"x" * (1_000 if number < 32 else 1_000_000) for number in range(64)]
    shards = write_shards(tmp_path, [(f"{n:03d}", {"txt": text, "cls": b"%d" % n}) for n, text in enumerate(texts)], 1)
    with Loader.of(shards, "--fields", "txt cls", "--workers", "1") as server:
        front = psutil.Process(server.process.pid)
        usual = front.rlimit(psutil.RLIMIT_NOFILE)

        def relieve() -> None:
            try:
                wait_until(lambda: "answers cannot be sent" in server.output, what="the word of it")
            finally:
                front.rlimit(psutil.RLIMIT_NOFILE, usual)

        relief = threading.Thread(target=relieve)
        got: list[int] = []
        with RemoteDataset(
            server.url, batch_size=8, shuffle=False, prefetch_bytes=1, shared_memory=False, timeout=60
        ) as dataset:
            for _, labels in dataset:
                if not got:
                    used = {int(entry.name) for entry in Path(f"/proc/{front.pid}/fd").iterdir()}
                    free = min(set(range(len(used) + 1)) - used)
                    front.rlimit(psutil.RLIMIT_NOFILE, (free, usual[1]))
                    relief.start()
                got += labels.tolist()
        relief.join()
        assert "Too many open files" in server.output
        assert got == list(range(64))


def test_a_server_restarted_on_its_port_is_used_again(shards: list[Path], undisturbed: str) -> None:
    with Loader.of(shards, *OPTIONS) as first:
        url = first.url
        with RemoteDataset(url, batch_size=32, timeout=60) as dataset:
            batches = iter(dataset)
            for _ in range(3):
                next(batches)
            first.kill()
            with Loader.of(shards, *OPTIONS, bind=[url]):
                for _ in batches:
                    pass
                assert dataset.digest == undisturbed


def test_with_every_server_gone_the_trainer_is_told_within_its_timeout(shards: list[Path]) -> None:
    with Loader.of(shards, *OPTIONS) as server, RemoteDataset(server.url, batch_size=32, timeout=1.5) as dataset:
        batches = iter(dataset)
        next(batches)
        server.kill()
        with pytest.raises(StarvedError, match=r"tcp://127\.0\.0\.1:\d+: .*nobody listens"):
            for _ in batches:
                pass


def test_a_killed_server_leaves_no_process_and_no_file(shards: list[Path], temporary_folder: Path) -> None:
    before = set(temporary_folder.iterdir())
    with Loader.of(shards, *OPTIONS) as server, RemoteDataset(server.url, batch_size=32) as dataset:
        next(iter(dataset))
        family = psutil.Process(server.process.pid).children(recursive=True)
        assert len(family) > 1
        server.process.kill()
        server.wait()
        wait_until(lambda: not any(process.is_running() for process in family), what="the end of its processes")
    assert set(temporary_folder.iterdir()) <= before


def test_a_shard_changed_since_is_refused_and_never_served(photographs: Photographs, tmp_path: Path) -> None:
    shards = write_photographs(tmp_path, photographs[:64], count=2)
    with Loader.of(shards, *OPTIONS) as server, RemoteDataset(server.url, batch_size=8, shuffle=False) as dataset:
        os.utime(shards[1], ns=(1, 1))
        served = []
        with pytest.raises(ShardError, match=r"train-000001\.tar.*changed.*shardfeed index"):
            for images, _ in dataset:
                served.append(len(images))
        assert sum(served) <= 32


def test_a_sample_that_kills_or_hangs_its_worker_is_named_and_the_server_lives(
    photographs: Photographs, tmp_path: Path
) -> None:
    shards = write_photographs(tmp_path, photographs[:64], count=1)
    (tmp_path / "deadly.py").write_text(
        "import os, signal, time\n"
        "def transform(sample):\n"
        "    if sample['__key__'] == '000007': os._exit(3)\n"
        "    if sample['__key__'] == '000021': time.sleep(1000)\n"
        "    if sample['__key__'] == '000035': bytearray(1 << 46)\n"  # more memory than there is
        "    if sample['__key__'] == '000050': os.kill(os.getpid(), signal.SIGKILL)\n"  # as the kernel then does
        "    return sample\n"
    )
    options = (*OPTIONS, "--transform", "deadly:transform", "--code-dir", str(tmp_path), "--sample-timeout", "1.5")
    with Loader.of(shards, *options) as server:
        with RemoteDataset(server.url, batch_size=16, shuffle=False, on_error="mask", info=True) as dataset:
            bad = [key for *_, info in dataset for key, valid in zip(info.keys, info.valid, strict=True) if not valid]
            assert bad == ["000007", "000021", "000035", "000050"]
            assert dataset.stats.masked == 4
        with (
            RemoteDataset(server.url, batch_size=16, shuffle=False) as dataset,
            pytest.raises(SampleError, match=r"'000007' of shard 'train-000000\.tar'.*exit status 3") as caught,
        ):
            next(iter(dataset))
        assert caught.value.key == "000007"
