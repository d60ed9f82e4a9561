"""SIGHUP: streams come, go and change while a trainer reads, and it loses nothing."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfeed import RecipeMismatchError, RemoteDataset, UnknownStreamError
from shardfeed.inquiry import ask_server
from tests.photographs import write_shards
from tests.system.loaders import Loader, wait_until

SAMPLES = 400

STREAM = """
[streams.{name}]
shards = "train-{{000000..000001}}.tar"
fields = "txt cls"
transform = "mine:{transform}"
"""

CODE = """
import time


def slowly(sample):
    time.sleep(0.002)
    return sample


def quickly(sample):
    return sample
"""


def configuration(**streams: str) -> str:
    tables = (STREAM.format(name=name, transform=transform) for name, transform in streams.items())
    return 'code_dir = "."\nworkers = 1\n' + "".join(tables)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    write_shards(tmp_path, [(f"{n:04d}", {"txt": b"text", "cls": b"%d" % n}) for n in range(SAMPLES)], 2)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Loader]:
    (folder / "shardfeed.toml").write_text(configuration(train="slowly"))
    with Loader(["--config", folder / "shardfeed.toml", "--bind", "tcp://127.0.0.1:0"]) as loader:
        yield loader


def reread(server: Loader, folder: Path, written: str, said: str) -> None:
    before = len(server.lines)
    (folder / "shardfeed.toml").write_text(written)
    server.tell(signal.SIGHUP)
    wait_until(lambda: any(said in line for line in server.lines[before:]), 40, what=f"the server's saying {said!r}")


@pytest.mark.timeout(180)
def test_streams_come_go_and_change_under_a_trainer_that_loses_nothing(server: Loader, folder: Path) -> None:
    with RemoteDataset(server.url, stream="train", batch_size=8, job="undisturbed") as dataset:
        for _ in dataset:
            pass
        undisturbed = dataset.digest

    first = {worker.pid for worker in server.workers()}
    with RemoteDataset(server.url, stream="train", batch_size=8) as dataset:
        batches = iter(dataset)
        next(batches)
        reread(server, folder, configuration(train="slowly", val="quickly"), "new=val same=train")
        next(batches)
        reread(server, folder, "workers = 'many'", "the streams stay as they are")
        reread(server, folder, configuration(train="slowly", val="absent"), "the streams stay as they are")
        reread(server, folder, 'name = "other"\n' + configuration(train="slowly"), "gone=val same=train")
        assert any("needs a restart" in line and "key=name" in line for line in server.lines)
        for _ in batches:
            pass
        assert dataset.digest == undisturbed
        stats = dataset.stats
        assert (stats.retried, stats.evacuated) == (0, 0)

    # The workers of the generations before have ended.
    wait_until(lambda: len(server.workers()) == 1, what="the end of the earlier workers")
    assert not first & {worker.pid for worker in server.workers()}
    assert [stream.name for stream in ask_server(server.url, timeout=20).streams] == ["train"]

    with RemoteDataset(server.url, stream="train", batch_size=8, prefetch_bytes=1, timeout=60) as dataset:
        batches = iter(dataset)
        next(batches)
        reread(server, folder, configuration(train="quickly"), "changed=train")
        with pytest.raises(RecipeMismatchError, match="mine:quickly"):
            for _ in batches:
                pass
    with RemoteDataset(server.url, stream="train", batch_size=8, prefetch_bytes=1, timeout=60) as dataset:
        batches = iter(dataset)
        next(batches)
        reread(server, folder, configuration(other="quickly"), "new=other gone=train")
        with pytest.raises(UnknownStreamError, match="serves no stream 'train'"):
            for _ in batches:
                pass


def test_a_terminal_that_is_closed_ends_a_server_that_was_started_from_it(folder: Path) -> None:
    (folder / "shardfeed.toml").write_text(configuration(train="quickly"))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shardfeed", "serve", "--config", folder / "shardfeed.toml", "--http", "off"]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--bind", f"ipc://{folder}/feed"], stdin=theirs, stdout=out, stderr=out, start_new_session=True
        )
    os.close(theirs)
    try:
        wait_until(lambda: "read train with" in log.read_text(), 40, what="the server's start")
        process.send_signal(signal.SIGHUP)  # the terminal is still there: no hang-up
        wait_until(lambda: "re-read" in log.read_text(), 40, what="the re-reading")
        assert process.poll() is None
        os.close(ours)
        ours = -1
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0
    finally:
        if ours >= 0:
            os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "draining" in log.read_text()
