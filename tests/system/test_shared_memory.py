"""A server on the trainer's machine lends its answers as memory: the same batches, the trainer's own, nothing left."""

from __future__ import annotations

import gc
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from shardfeed import RemoteDataset
from shardfeed.inquiry import ask_server
from shardfeed_wire import sharing
from shardfeed_wire.messages import SharedMemory
from tests.photographs import Photographs
from tests.system.loaders import Loader, wait_until, write_photographs

pytestmark = pytest.mark.xdist_group("shared-memory")  # one server for most

SAMPLES, BATCH = 256, 16
OPTIONS = ("--workers", "2")
SLOT = 1 << 20  # what an answer of 16 pictures of 64 x 64 lies in


@pytest.fixture(scope="module")
def shards(photographs_of: Callable[[int, int], Photographs], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photographs(tmp_path_factory.mktemp("shared"), photographs_of(64, 64)[:SAMPLES], count=2)


@pytest.fixture(scope="module")
def server(shards: list[Path]) -> Iterator[Loader]:
    with Loader.of(shards, *OPTIONS) as server:
        yield server


def borrowed(pid: int | str = "self") -> int:
    """How many slots a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return len(re.findall(r"memfd:shardfeed-answer", maps))


def content(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    return [images.clone() for images, _ in batches]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


@pytest.fixture(scope="module")
def sent(server: Loader) -> tuple[list[torch.Tensor], str]:
    """An epoch's pictures as they come over TCP, and the digest of every byte."""
    with RemoteDataset(server.url, batch_size=BATCH, shared_memory=False, digest="content") as dataset:
        batches = content(list(dataset))
        assert not borrowed()
        return batches, dataset.digest


def test_what_is_lent_is_what_would_have_been_sent(server: Loader, sent: tuple[list[torch.Tensor], str]) -> None:
    with RemoteDataset(server.url, batch_size=BATCH, digest="content") as dataset:
        assert same(content(list(dataset)), sent[0])
        assert dataset.digest == sent[1]
        assert borrowed(), "nothing was lent"
    gc.collect()
    assert not borrowed()


def test_a_pass_through_the_network_borrows_nothing_where_the_server_lends_nothing(
    shards: list[Path], sent: tuple[list[torch.Tensor], str]
) -> None:
    with (
        Loader.of(shards, *OPTIONS, "--shared-bytes", "0") as server,
        RemoteDataset(server.url, batch_size=BATCH) as dataset,
    ):
        assert same(content(list(dataset)), sent[0])
        assert not borrowed()


def test_a_batch_edited_in_place_is_changed_for_its_trainer_alone(
    server: Loader, sent: tuple[list[torch.Tensor], str]
) -> None:
    with RemoteDataset(server.url, batch_size=BATCH) as one, RemoteDataset(server.url, batch_size=BATCH) as other:
        for _ in range(3):  # so that every slot comes back at least once
            one.set_epoch(0)
            other.set_epoch(0)
            for number, ((mine, _), (yours, _)) in enumerate(zip(one, other, strict=True)):
                assert torch.equal(mine, sent[0][number])
                mine.fill_(number)
                assert torch.equal(yours, sent[0][number])
                assert bool((mine == number).all())
        assert borrowed()


def test_batches_that_are_kept_keep_their_content_and_what_exceeds_the_budget_is_sent(
    shards: list[Path], sent: tuple[list[torch.Tensor], str]
) -> None:
    with (
        Loader.of(shards, *OPTIONS, "--shared-bytes", str(3 * SLOT)) as server,
        RemoteDataset(server.url, batch_size=BATCH) as dataset,
    ):
        kept = [images for images, _ in dataset]
        assert borrowed() == 3
        dataset.set_epoch(1)
        assert sum(1 for _ in dataset) == len(kept)
        assert borrowed() == 3
        assert same(kept, sent[0])


def test_batches_that_are_kept_outlive_their_data_set_and_what_others_then_get(
    server: Loader, sent: tuple[list[torch.Tensor], str]
) -> None:
    with RemoteDataset(server.url, batch_size=BATCH) as dataset:
        kept = [images for images, _ in dataset]
        assert borrowed()
    with RemoteDataset(server.url, batch_size=BATCH, seed=1) as others:
        assert sum(1 for _ in others) == len(kept)
    assert same(kept, sent[0])


KEEPING = """
import sys, time
from shardfeed import RemoteDataset
dataset = RemoteDataset(sys.argv[1], batch_size=16)
kept = list(dataset)
print("kept", flush=True)
time.sleep(600)
"""


def test_a_trainer_that_is_killed_gives_back_all_that_it_had(shards: list[Path]) -> None:
    with Loader.of(shards, *OPTIONS, "--shared-bytes", str(4 * SLOT)) as server:
        with subprocess.Popen(
            [sys.executable, "-c", KEEPING, server.url], stdout=subprocess.PIPE, text=True
        ) as trainer:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == "kept\n"
            assert borrowed(trainer.pid) == 4
            with RemoteDataset(server.url, batch_size=BATCH) as second:  # the first has more than its half already
                half = [images for images, _ in second]
                assert borrowed() == 2
                del half
            trainer.send_signal(signal.SIGKILL)
        gc.collect()
        assert not borrowed()

        def all_of_it() -> bool:
            with RemoteDataset(server.url, batch_size=BATCH) as dataset:
                kept = list(dataset)
                return borrowed() == 4 and len(kept) == SAMPLES // BATCH

        wait_until(all_of_it, what="the return of what the killed trainer had")


def test_what_a_killed_server_had_lent_stays_the_trainers_and_leaves_with_it(
    shards: list[Path], sent: tuple[list[torch.Tensor], str]
) -> None:
    with Loader.of(shards, *OPTIONS) as server, RemoteDataset(server.url, batch_size=BATCH) as dataset:
        kept = [images for images, _ in dataset]
        server.kill()
        wait_until(lambda: not server.workers() if server.process.poll() is None else True)
        assert same(kept, sent[0])
    assert borrowed()
    del kept
    gc.collect()
    assert not borrowed()


FORKING = """
import os, sys
from shardfeed import RemoteDataset
dataset = RemoteDataset(sys.argv[1], batch_size=16)
batches = iter(dataset)
images, labels = next(batches)
before = images.numpy().tobytes()
assert "memfd:shardfeed-answer" in open("/proc/self/maps").read()
go = os.pipe()
child = os.fork()
if not child:
    os.close(go[1])  # so that it ends with its parent, however that ends
    os.read(go[0], 1)  # by now the parent has used every slot again
    os._exit(0 if images.numpy().tobytes() == before else 1)
del images, labels
for batch in batches:
    pass
for epoch in range(3):
    for batch in dataset:
        pass
del batch
os.write(go[1], b"x")
_, status = os.waitpid(child, 0)
dataset.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_keeps_the_batch_that_its_parent_drops(server: Loader) -> None:
    done = subprocess.run([sys.executable, "-c", FORKING, server.url], timeout=50, check=False)
    assert done.returncode == 0


def test_many_trainers_share_the_budget_and_each_gets_its_batches(
    shards: list[Path], sent: tuple[list[torch.Tensor], str]
) -> None:
    with Loader.of(shards, *OPTIONS, "--shared-bytes", str(64 * SLOT)) as server:
        datasets = [RemoteDataset(server.url, batch_size=BATCH, prefetch_bytes=1 << 20) for _ in range(32)]
        try:
            kept: list[torch.Tensor] = []
            for number, steps in enumerate(itertools.islice(zip(*datasets, strict=True), 5)):
                for images, _ in steps:
                    assert torch.equal(images, sent[0][number])
                kept.append(steps[0][0])
            assert borrowed()
            assert same(kept, sent[0][:5])
        finally:
            for dataset in datasets:
                dataset.close()


# Who may borrow


def offer_of(server: Loader) -> SharedMemory:
    offer = ask_server(server.url).shared
    assert offer is not None
    return offer


def connect(offer: SharedMemory) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20)
    connection.connect(sharing.address(offer.socket))
    return connection


@pytest.mark.parametrize(
    "said",
    [
        sharing.encode(sharing.Attach(token=bytes(16))),
        sharing.encode(sharing.Release(slot=0)),
        b"\xff" * 100,
    ],
    ids=["a wrong token", "what it was not lent", "noise"],
)
def test_who_says_what_makes_no_sense_is_shown_out(server: Loader, said: bytes) -> None:
    with connect(offer_of(server)) as connection:
        connection.send(said)
        assert connection.recv(100) == b""


def test_a_token_counts_once(server: Loader) -> None:
    offer = offer_of(server)
    with connect(offer) as first, connect(offer) as second:
        first.send(sharing.encode(sharing.Attach(token=offer.token)))
        first.setblocking(False)
        second.send(sharing.encode(sharing.Attach(token=offer.token)))
        assert second.recv(100) == b""
        with pytest.raises(BlockingIOError):
            first.recv(100)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_gets_no_memory_whatever_token_it_has(server: Loader) -> None:
    offer = offer_of(server)
    program = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        " s.settimeout(20); s.connect('\\0' + sys.argv[1]);"
        " sys.exit(0 if s.recv(100) == b'' else 1)"
    )
    done = subprocess.run([sys.executable, "-c", program, offer.socket], timeout=50, check=False)
    assert done.returncode == 0
