"""Trainers with equal plans cost a server the decoding of one, and know nothing of each other."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import torch

from shardfeed import RemoteDataset
from tests.photographs import Photographs
from tests.server.test_http import metrics
from tests.system.loaders import Loader, wait_until, write_photographs

pytestmark = pytest.mark.xdist_group("equal-trainers")  # two processes train for all

SAMPLES, BATCH, EPOCHS = 192, 16, 2
STEPS = EPOCHS * SAMPLES // BATCH
SLOT = 1 << 20  # what an answer of 16 pictures of 64 x 64 lies in
WINDOW = 2  # steps that a trainer asks for ahead
EXPECTED = BATCH * 150_000  # bytes that a server expects of a first request for so many rows

TRANSFORMS = """
import os, pathlib, time

HERE = pathlib.Path(__file__).parent


def counts(sample):
    descriptor = os.open(HERE / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b"x")
    os.close(descriptor)
    return sample


def waits(sample):
    counts(sample)
    while not (HERE / "go").exists():
        time.sleep(0.01)
    return sample


def kills(sample):
    waits(sample)
    if (HERE / "deadly").exists() and sample["__key__"].endswith("000003"):
        os._exit(1)
    return sample
"""

TRAINER = f"""
import sys
from shardfeed import RemoteDataset
while told := sys.stdin.readline():
    url, seed, shared, framing = told.split()
    with RemoteDataset(
        url, batch_size={BATCH}, seed=int(seed), shared_memory=shared == "shared", framing=framing, digest="content",
        prefetch_bytes={WINDOW} * {BATCH} * (64 * 64 * 3 + 100),
    ) as dataset:
        for epoch in range({EPOCHS}):
            for images, _ in dataset:
                print("step", flush=True)
                sys.stdin.readline()
                images.fill_(7)  # what is mine I may edit
                del images
    print(dataset.digest, flush=True)
"""


class Trainer:
    """A process that runs one training after the other, and takes a step when it is told to."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", TRAINER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.trains = False

    def train(self, server: Loader, path: str = "shared", framing: str = "multipart", *, seed: int = 0) -> Self:
        """Begin a training, with a data set of its own."""
        assert self.process.stdin is not None
        assert not self.trains
        self.process.stdin.write(f"{server.url} {seed} {path} {framing}\n")
        self.trains = True
        return self

    def step(self) -> str:
        """Wait for its batch and let it go on; once all are through it says its digest instead."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        if said == "step":
            self.process.stdin.write("\n")
        else:
            self.trains = False
        return said

    def finish(self) -> str:
        while (said := self.step()) == "step":
            pass
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Trainer]]:
    """Two trainers for all: to import torch takes one longer than its training."""
    made = [Trainer(), Trainer()]
    yield made
    for trainer in made:
        with trainer:
            pass


@pytest.fixture
def trainers(processes: list[Trainer]) -> Iterator[list[Trainer]]:
    yield processes
    for number, trainer in enumerate(processes):
        if trainer.trains:  # the test failed in the midst
            with trainer:
                processes[number] = Trainer()


@pytest.fixture(scope="module")
def shards(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photographs(tmp_path_factory.mktemp("equal"), photographs[:SAMPLES], count=2)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "equal_transforms.py").write_text(TRANSFORMS)
    return tmp_path


def serving(shards: list[Path], code: Path, *options: str, transform: str = "counts", workers: int = 2) -> Loader:
    fields = ("--fields", "jpg cls", "--resize", "64x64", "--transform-op", "flip")
    recipe = ("--code-dir", str(code), "--transform", f"equal_transforms:{transform}")
    return Loader.of(shards, *fields, *recipe, "--workers", str(workers), "--http", "127.0.0.1:0", *options)


def decoded(code: Path) -> int:
    """How many samples workers made, but for those that tell what columns a stream has."""
    return (code / "calls").stat().st_size - 16


def figure(server: Loader, name: str) -> float:
    """A metric's sum over its labels."""
    (url,) = re.findall(r"^health and figures: (http://\S+?)/healthz", server.output, re.MULTILINE)
    return sum(value for (each, _), value in metrics(url).items() if each == name)


@pytest.fixture(scope="module")
def alone(shards: list[Path], processes: list[Trainer], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of every byte that one trainer gets which nobody is beside."""
    code = tmp_path_factory.mktemp("alone")
    (code / "equal_transforms.py").write_text(TRANSFORMS)
    with serving(shards, code) as server:
        digest = processes[0].train(server).finish()
        assert figure(server, "shardfeed_shared_samples_total") == 0
        assert figure(server, "shardfeed_kept_bytes") == 0
    assert decoded(code) >= EPOCHS * SAMPLES
    return digest


@pytest.mark.parametrize(
    ("paths", "framings"),
    [
        (("shared", "shared"), ("multipart", "multipart")),
        (("network", "network"), ("multipart", "single")),
        (("network", "shared"), ("single", "multipart")),
    ],
    ids=["both borrow", "both over TCP, one in single frames", "one borrows"],
)
def test_two_trainers_with_equal_seeds_cost_one_decoding_and_get_what_each_would_alone(
    shards: list[Path],
    code: Path,
    alone: str,
    trainers: list[Trainer],
    paths: tuple[str, str],
    framings: tuple[str, str],
) -> None:
    with serving(shards, code) as server:
        one, other = (
            trainer.train(server, path, framing)
            for trainer, path, framing in zip(trainers, paths, framings, strict=True)
        )
        for _ in range(STEPS):
            assert (one.step(), other.step()) == ("step", "step")
        assert (one.step(), other.step()) == (alone, alone)
        # An answer counts when its memory is free again, which may be a moment after the trainer has it.
        wait_until(lambda: figure(server, "shardfeed_samples_total") >= 2 * EPOCHS * SAMPLES, what="the count")
        # What one had got before the other asked is made again, and so it is with what both ask for beyond the end.
        assert decoded(code) <= EPOCHS * SAMPLES + (2 * WINDOW + 4) * BATCH
        shared = figure(server, "shardfeed_shared_samples_total")
        assert shared >= figure(server, "shardfeed_samples_total") - decoded(code) > 0


def test_trainers_with_different_seeds_share_nothing(shards: list[Path], code: Path, trainers: list[Trainer]) -> None:
    with serving(shards, code) as server:
        one, other = trainers[0].train(server), trainers[1].train(server, seed=1)
        for _ in range(STEPS):
            assert (one.step(), other.step()) == ("step", "step")
        assert one.step() != other.step()
        assert figure(server, "shardfeed_shared_samples_total") == 0
        assert figure(server, "shardfeed_kept_bytes") == 0
    assert decoded(code) >= 2 * EPOCHS * SAMPLES


def test_a_trainer_that_is_killed_in_the_midst_leaves_its_equal_alone(
    shards: list[Path], code: Path, alone: str, trainers: list[Trainer]
) -> None:
    with serving(shards, code, "--shared-bytes", str(8 * SLOT)) as server:
        one = trainers[0].train(server)
        with Trainer() as killed:
            killed.train(server)
            for _ in range(STEPS // 3):
                assert (one.step(), killed.step()) == ("step", "step")
        assert one.finish() == alone
    assert decoded(code) <= EPOCHS * SAMPLES + (2 * WINDOW + 4) * BATCH


def test_one_that_lags_gets_what_is_kept_and_no_more_than_may_be_is_kept(
    shards: list[Path], code: Path, alone: str, trainers: list[Trainer]
) -> None:
    bound = 12 * SLOT  # twice what lies between the two: what one makes anew beside it is kept, too
    with serving(shards, code, "--answer-cache-bytes", str(bound)) as server:
        one, other = (trainer.train(server) for trainer in trainers)
        most = 0.0
        for number in range(STEPS):
            assert one.step() == "step"
            if number >= 3:
                assert other.step() == "step"
            most = max(most, figure(server, "shardfeed_kept_bytes"))
        assert SLOT <= most <= bound
        near = figure(server, "shardfeed_shared_samples_total")
        assert near > SAMPLES
        assert other.finish() == one.step() == alone
        late = trainers[0].train(server)  # by far more than is kept
        assert late.finish() == alone
        assert figure(server, "shardfeed_kept_bytes") <= bound


def test_no_room_is_taken_from_answers_that_are_to_be_sent(
    shards: list[Path], code: Path, alone: str, trainers: list[Trainer]
) -> None:
    options = ("--send-bytes", str(2 * SLOT), "--shared-bytes", "0")
    with serving(shards, code, *options) as server:
        one, other = (trainer.train(server) for trainer in trainers)
        for _ in range(STEPS):
            assert (one.step(), other.step()) == ("step", "step")
            assert figure(server, "shardfeed_kept_bytes") <= 2 * SLOT
        assert (one.step(), other.step()) == (alone, alone)


def test_requests_under_way_are_joined_though_nothing_is_kept(shards: list[Path], code: Path) -> None:
    (code / "go").touch()  # the server's own probing of the stream
    options = ("--answer-cache-bytes", "0")
    with serving(shards, code, *options, transform="waits", workers=1) as server:
        (code / "go").unlink()
        before = decoded(code)
        with asking(server) as one, asking(server) as other:
            batches = [iter(one), iter(other)]  # each asks for its first step
            wait_until(lambda: figure(server, "shardfeed_unsent_bytes") >= 2 * EXPECTED, what="the joining")
            assert decoded(code) == before + 1
            (code / "go").touch()
            (images, _), (same, _) = map(next, batches)
            assert torch.equal(images, same)
            assert figure(server, "shardfeed_kept_bytes") == 0


def test_a_sample_that_kills_its_worker_is_bad_for_all_that_asked_for_it_and_its_answer_is_not_kept(
    shards: list[Path], code: Path
) -> None:
    (code / "go").touch()
    with serving(shards, code, transform="kills", workers=1) as server:
        (code / "go").unlink()
        (code / "deadly").touch()
        with asking(server) as one, asking(server) as other:
            batches = [iter(one), iter(other)]
            wait_until(lambda: figure(server, "shardfeed_unsent_bytes") >= 2 * EXPECTED, what="the joining")
            (code / "go").touch()
            (images, _), (same, _) = map(next, batches)
            assert torch.equal(images, same)
            assert one.stats.masked == other.stats.masked == 1
            assert figure(server, "shardfeed_worker_deaths_total") == 2
        with asking(server) as later:  # its answer is made anew
            next(iter(later))
            assert later.stats.masked == 1
            assert figure(server, "shardfeed_worker_deaths_total") == 4


def asking(server: Loader) -> RemoteDataset:
    """One that asks for a single step ahead."""
    return RemoteDataset(server.url, batch_size=BATCH, shuffle=False, prefetch_bytes=1, on_error="mask")
