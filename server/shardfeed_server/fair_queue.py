"""Requests that wait, served in turn by bytes, each job within its share of the unsent bytes. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")


@dataclass(slots=True)
class _Job(Generic[T]):
    waiting: deque[tuple[T, int]] = field(default_factory=deque)
    unsent: int = 0
    served: int = 0


class FairQueue(Generic[T]):
    """A queue of items of many jobs, each item with an expected size in bytes.

    The next item is of the job that was served the fewest bytes and has room: a job may have
    ``unsent_bytes / (jobs with unsent bytes + 1)`` unsent, or one item whatever its size. So one that
    does not read holds its own share, and no more. All jobs together have at most ``unsent_bytes`` and
    what the last item is above it, however many they are: the next one waits until they have less.
    """

    def __init__(self, *, unsent_bytes: int, items_per_job: int, items: int) -> None:
        """Begin empty."""
        self._unsent_bytes, self._items_per_job, self._most_items = unsent_bytes, items_per_job, items
        self._jobs: OrderedDict[str, _Job[T]] = OrderedDict()
        self._items = 0
        self.unsent = 0
        """Bytes handed out and not yet settled."""

    def __len__(self) -> int:
        """Return how many items wait."""
        return self._items

    @property
    def starved(self) -> bool:
        """Whether a job waits that has nothing unsent, since the others have all that there may be."""
        return self.unsent >= self._unsent_bytes and any(job.waiting and not job.unsent for job in self._jobs.values())

    def unsent_of(self, job: str) -> int:
        """Bytes of a job handed out and not yet settled."""
        return self._jobs[job].unsent

    def push(self, job: str, item: T, size: int) -> bool:
        """Let an item wait; False where the job's part of the queue, or the whole, is full."""
        entry = self._jobs.get(job)
        if self._items >= self._most_items or (entry is not None and len(entry.waiting) >= self._items_per_job):
            return False
        if entry is None:
            # A newcomer starts level with the least served, so that it neither waits nor takes all.
            entry = self._jobs[job] = _Job(served=min((other.served for other in self._jobs.values()), default=0))
        entry.waiting.append((item, size))
        self._items += 1
        return True

    def pop(self, fits: Callable[[T], bool] = lambda _: True) -> tuple[str, T, int] | None:
        """Return the next (job, item, size), its bytes counted as unsent, or None where no job has an item and room.

        Only jobs are looked at whose next item ``fits``.
        """
        left = self._unsent_bytes - self.unsent
        if left <= 0 or not self._items:
            return None
        share = self._unsent_bytes // (1 + sum(1 for job in self._jobs.values() if job.unsent))
        ready = [
            (entry.served, name)
            for name, entry in self._jobs.items()
            if entry.waiting
            and (not entry.unsent or entry.waiting[0][1] <= min(left, share - entry.unsent))
            and fits(entry.waiting[0][0])
        ]
        if not ready:
            return None
        name = min(ready)[1]
        entry = self._jobs[name]
        item, size = entry.waiting.popleft()
        self._items -= 1
        entry.unsent += size
        entry.served += size
        self.unsent += size
        return name, item, size

    def correct(self, job: str, expected: int, actual: int) -> None:
        """Replace the expected bytes of an item handed out by the actual ones."""
        self._jobs[job].unsent += actual - expected
        self._jobs[job].served += actual - expected
        self.unsent += actual - expected

    def settle(self, job: str, size: int) -> None:
        """Count the bytes of an item handed out as sent, or as never to be."""
        entry = self._jobs[job]
        entry.unsent -= size
        self.unsent -= size
        if not entry.waiting and not entry.unsent:
            del self._jobs[job]

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out and return the waiting items that are not wanted any more."""
        removed: list[T] = []
        for name in list(self._jobs):
            entry = self._jobs[name]
            gone = [item for item, _ in entry.waiting if unwanted(item)]
            if gone:
                removed += gone
                entry.waiting = deque((item, size) for item, size in entry.waiting if not unwanted(item))
                if not entry.waiting and not entry.unsent:
                    del self._jobs[name]
        self._items -= len(removed)
        return removed
