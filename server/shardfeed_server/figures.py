"""What a server has done, counted: by stream and job, and by the trainers' own account of their waiting. Pure.

Counting is some additions for each answer, in the front's loop. Names come from clients, so what is
counted apart is bounded: 64 jobs and 1,024 ranks at a time, names of 100 characters. Those beyond
share the name `OTHERS`, and a job that has not been heard of for ten minutes is forgotten.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from shardfeed_wire.messages import Seconds, Waited

__all__ = ["BOUNDS", "CAUSES", "OTHERS", "PHASES", "Figures", "Histogram", "Served", "Standing", "Trainer", "Work"]

PHASES: Final = ("waiting", "reading", "decoding", "collating", "sending")
"""What an answer's time is spent on, in order."""

CAUSES: Final = ("queue", "reading", "decoding", "collating", "wire")
"""What a trainer waits for; the fields of `Waited`."""

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of a histogram's buckets in seconds; one more bucket has what lies above."""

OTHERS: Final = "(others)"
"""The job or rank under which is counted what is too many to be counted apart."""

_MOST_JOBS = 64
_MOST_RANKS = 1_024
_MOST_CHARACTERS = 100
_FORGET_SECONDS = 600.0
_MOST_WAITED = 1e6
"""Seconds, or steps, that no honest trainer tells of in one request."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer took: seconds, CPU seconds of the worker, rows that failed, samples found in the cache or not."""

    seconds: Seconds = Seconds()
    cpu: float = 0.0
    masked: int = 0
    hits: int = 0
    misses: int = 0


class Histogram:
    """Durations in buckets."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        """Begin empty."""
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def copy(self) -> Histogram:
        """Return one that counts on its own."""
        copied = Histogram()
        copied.counts, copied.sum = self.counts[:], self.sum
        return copied


@dataclass(slots=True)
class Served:
    """What one job got of one stream."""

    samples: int = 0
    batches: int = 0
    bytes: int = 0
    cpu: float = 0.0
    masked: int = 0
    busy: int = 0
    hits: int = 0
    misses: int = 0
    shared: int = 0
    seconds: tuple[Histogram, ...] = field(default_factory=lambda: tuple(Histogram() for _ in PHASES))


@dataclass(slots=True)
class Trainer:
    """What one rank of a job says of itself: steps taken, and seconds waited for them by `CAUSES`."""

    steps: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))


@dataclass(frozen=True, slots=True)
class Standing:
    """How a server stands at the moment; ``clients`` has the job's name as counted for each of them."""

    name: str
    software: str
    ready: bool
    workers: int
    queued: int
    unsent: int
    kept: int
    clients: tuple[str, ...]


class Figures:
    """The counters of one server. All methods take the time in seconds where they need it."""

    def __init__(self) -> None:
        """Count from nothing."""
        self.served: dict[tuple[str, str], Served] = {}
        self.trainers: dict[tuple[str, str], Trainer] = {}
        self.failed: dict[str, int] = {}
        self.worker_deaths = 0
        self._seen: dict[str, float] = {}

    def answered(
        self,
        stream: str,
        job: str,
        *,
        rows: int,
        size: int,
        work: Work,
        sending: float,
        now: float,
        shared: bool = False,
    ) -> None:
        """Count an answer of ``size`` bytes that was sent; ``shared`` where it was made for an equal request."""
        served = self._of(stream, job, now)
        served.samples += rows - work.masked
        served.batches += 1
        served.bytes += size
        served.cpu += work.cpu
        served.masked += work.masked
        served.hits += work.hits
        served.misses += work.misses
        waiting, reading, decoding, collating, sent = served.seconds
        seconds = work.seconds
        waiting.add(seconds.waiting)
        sent.add(sending)
        if shared:  # no worker did anything for it
            served.shared += rows - work.masked
            return
        reading.add(seconds.reading)
        decoding.add(seconds.decoding)
        collating.add(seconds.collating)

    def refused_busy(self, stream: str, job: str, now: float) -> None:
        """Count a request that was refused because the queue was full."""
        self._of(stream, job, now).busy += 1

    def request_failed(self, reason: str) -> None:
        """Count a request that workers could not answer; ``reason`` is the protocol's word."""
        self.failed[reason] = self.failed.get(reason, 0) + 1

    def worker_died(self) -> None:
        """Count a worker that died and was replaced."""
        self.worker_deaths += 1

    def waited(self, job: str, rank: int, told: Waited, now: float) -> None:
        """Count what a trainer tells of its waiting. What no honest one would tell is left out."""
        seconds = {cause: getattr(told, cause) for cause in CAUSES}
        if not all(0 <= value <= _MOST_WAITED for value in (told.steps, *seconds.values())):
            return
        job = self.label(job, now)
        key = (job, OTHERS if job == OTHERS else str(rank))
        if key not in self.trainers and len(self.trainers) >= _MOST_RANKS:
            key = (job, OTHERS)
        trainer = self.trainers.get(key)
        if trainer is None:
            trainer = self.trainers[key] = Trainer()
        trainer.steps += told.steps
        for cause, value in seconds.items():
            trainer.seconds[cause] += value

    def label(self, job: str, now: float) -> str:
        """Return the name under which a job is counted, and note that it was heard of."""
        name = job if job in self._seen else _plain(job)
        if name not in self._seen and len(self._seen) >= _MOST_JOBS:
            self.forget(now)
            if len(self._seen) >= _MOST_JOBS:
                return OTHERS
        self._seen[name] = now
        return name

    def forget(self, now: float) -> None:
        """Forget the jobs that have not been heard of for a while."""
        gone = {name for name, seen in self._seen.items() if now - seen > _FORGET_SECONDS}
        if not gone:
            return
        self._seen = {name: seen for name, seen in self._seen.items() if name not in gone}
        self.served = {key: served for key, served in self.served.items() if key[1] not in gone}
        self.trainers = {key: trainer for key, trainer in self.trainers.items() if key[0] not in gone}

    def snapshot(self, now: float) -> Figures:
        """Return a copy that does not change any more, without what is to be forgotten."""
        self.forget(now)
        copied = Figures()
        copied.served = {
            key: replace(served, seconds=tuple(histogram.copy() for histogram in served.seconds))
            for key, served in self.served.items()
        }
        copied.trainers = {key: Trainer(trainer.steps, dict(trainer.seconds)) for key, trainer in self.trainers.items()}
        copied.failed, copied.worker_deaths = dict(self.failed), self.worker_deaths
        return copied

    def _of(self, stream: str, job: str, now: float) -> Served:
        key = (stream, self.label(job, now))
        served = self.served.get(key)
        if served is None:
            served = self.served[key] = Served()
        return served


def _plain(job: str) -> str:
    """Return a job's name as a label: what does not print is a question mark, and it ends where it is too long."""
    return "".join(character if character.isprintable() else "?" for character in job[:_MOST_CHARACTERS])
