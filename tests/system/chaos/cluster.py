"""Three loader servers, two ranks, and what befalls the servers while the ranks read an epoch."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shardfeed import RemoteDataset
from shardfeed.routing import Piece
from tests.photographs import write_shards
from tests.system.loaders import Loader

__all__ = ["Cluster", "Faults", "Rank", "servers_of", "write_small_pictures"]

LONGEST_STOP = 4.0
RESTART_AFTER = (0.1, 1.0)
MOST_AT_ONCE = 2
"""Of three servers, and one of them to be started anew: else nothing is ever done where starting one takes seconds."""

DEATHS_SURVIVED = 2
"""A request that is outstanding at a third death is raised, and rightly so: chaos leaves it in peace."""

TRANSFORM = """
import os, time
SECONDS = float(os.environ.get("CHAOS_SECONDS", "0"))
def transform(sample, rng):
    time.sleep(SECONDS)
    sample["jpg"] = sample["jpg"] ^ rng.integers(0, 256, sample["jpg"].shape, dtype="uint8")
    return sample
"""


def write_small_pictures(folder: Path, samples: int, shards: int) -> list[Path]:
    """Write small JPEGs and their classes; and, beside them, a transform that takes its time and draws at random."""
    chance = np.random.default_rng(0)
    listed = []
    for number in range(samples):
        stream = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(stream, "JPEG")
        listed.append((f"{number:06d}", {"jpg": stream.getvalue(), "cls": str(number % 10).encode()}))
    (folder / "slowly.py").write_text(TRANSFORM)
    return write_shards(folder, listed, shards)


def servers_of(shards: Sequence[Path], seconds_a_sample: float, *, bind: str = "tcp://127.0.0.1:0") -> Loader:
    """Start, without waiting for it, a server that spends so many seconds on each sample."""
    options = ["--resize", "32x32", "--workers", "1", "--fields", "jpg cls"]
    options += ["--transform", "slowly:transform", "--code-dir", str(shards[0].parent)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAOS_SECONDS", str(seconds_a_sample))
        return Loader([*shards, *options, "--bind", bind], wait=False)


class Rank(threading.Thread):
    """A trainer that reads one epoch, and keeps of each batch: its number, keys, checksums of rows, and padding."""

    def __init__(self, endpoints: list[str], rank: int, **options: Any) -> None:
        super().__init__(name=f"rank {rank}")
        self.dataset = RemoteDataset(endpoints, rank=rank, world_size=2, batch_size=16, info=True, **options)
        self.batches: list[tuple[int, list[str], list[int], list[bool]]] = []
        self.longest_wait = 0.0
        self.error: Exception | None = None

    def run(self) -> None:
        last = time.monotonic()
        try:
            for images, labels, info in self.dataset:
                sums = [
                    zlib.crc32(image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
                ]
                self.batches.append((info.step, info.keys, sums, info.valid.tolist()))
                now = time.monotonic()
                if len(self.batches) > 1:
                    self.longest_wait = max(self.longest_wait, now - last)
                last = now
        except Exception as error:
            self.error = error
        finally:
            self.stats = self.dataset.stats
            self.dataset.close()

    def asked(self, url: str) -> list[Piece]:
        """What the rank has asked of a server and not received yet."""
        opened = self.dataset._connection._open
        fetching = getattr(getattr(opened, "session", None), "_fetching", None)
        while fetching is not None:
            with contextlib.suppress(RuntimeError):  # changed meanwhile
                return [piece for server, piece, _ in list(fetching._asked.values()) if server == url]
        return []


class Cluster:
    """Servers on fixed ports."""

    def __init__(self, shards: Sequence[Path], seconds_a_sample: float, servers: int = 3) -> None:
        self._shards, self._seconds = shards, seconds_a_sample
        self.loaders = [servers_of(shards, seconds_a_sample) for _ in range(servers)]
        try:
            for loader in self.loaders:
                loader.wait_ready()
        except BaseException:
            self.close()
            raise
        self.urls = [loader.url for loader in self.loaders]

    def start_again(self, number: int) -> None:
        self.loaders[number] = servers_of(self._shards, self._seconds, bind=self.urls[number])

    def close(self) -> None:
        for loader in self.loaders:
            loader.kill()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Faults:
    """What befalls the servers, drawn from a seed: each fault hits a server that has requests outstanding."""

    def __init__(self, cluster: Cluster, ranks: Sequence[Rank], seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._cluster, self._ranks = cluster, ranks
        self._chance = random.Random(seed)
        self._mending: dict[int, Iterator[None]] = {}
        self._restarting: set[int] = set()  # of those that are mended: they were killed or drained

    @property
    def total(self) -> int:
        return self.counts.total()

    def torment(self, every: float) -> None:
        """Let faults happen until the ranks are done; then put every server right again."""
        due = time.monotonic() + every
        while any(rank.is_alive() for rank in self._ranks):
            self._mend()
            if time.monotonic() >= due and self._one():
                due = time.monotonic() + self._chance.uniform(0.5, 1.5) * every
            time.sleep(0.01)
        for loader in self._cluster.loaders:
            if loader.process.poll() is None:
                loader.tell(signal.SIGCONT)

    def _mend(self) -> None:
        for number, mending in list(self._mending.items()):
            if next(mending, "done") == "done":
                del self._mending[number]

    def _one(self) -> bool:
        """Let one fault happen, if there is a server that it hits in the middle of its work."""
        if len(self._mending) == MOST_AT_ONCE:
            return False
        restarting = not self._restarting.isdisjoint(self._mending)
        numbers = [number for number in range(len(self._cluster.urls)) if number not in self._mending]
        self._chance.shuffle(numbers)
        fault = self._chance.choice(["stop"] if restarting else ["kill", "drain", "stop", "stop"])
        for number in numbers:
            asked = [piece for rank in self._ranks for piece in rank.asked(self._cluster.urls[number])]
            if not asked or (fault == "kill" and any(piece.deaths >= DEATHS_SURVIVED for piece in asked)):
                continue
            self.counts[fault] += 1
            (self._restarting.discard if fault == "stop" else self._restarting.add)(number)
            self._mending[number] = getattr(self, f"_{fault}")(number, self._cluster.loaders[number])
            next(self._mending[number])
            return True
        return False

    def _kill(self, number: int, loader: Loader) -> Iterator[None]:
        loader.kill()
        yield from self._pause(self._chance.uniform(*RESTART_AFTER))
        yield from self._start_again(number)

    def _drain(self, number: int, loader: Loader) -> Iterator[None]:
        loader.tell(signal.SIGTERM)
        while loader.process.poll() is None:
            yield
        loader.wait()
        yield from self._start_again(number)

    def _stop(self, number: int, loader: Loader) -> Iterator[None]:
        """Stop the process that talks; its workers go on."""
        loader.tell(signal.SIGSTOP)
        yield from self._pause(self._chance.choice([0.2, 0.5, 1.0, 1.0, LONGEST_STOP]))
        loader.tell(signal.SIGCONT)

    def _start_again(self, number: int) -> Iterator[None]:
        self._cluster.start_again(number)
        while not self._cluster.loaders[number].endpoints:
            yield

    def _pause(self, seconds: float) -> Iterator[None]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield
