"""From the session's thread to the trainer's: delivered batches, in order, and the error or end behind them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardfeed.routing import Step
from shardfeed.waiting import Trip

__all__ = ["Delivered", "Feed"]


@dataclass(frozen=True, slots=True, eq=False)
class Delivered:
    """One batch: its columns by name, which rows are good, and what `digest` and `BatchInfo` need.

    ``good`` is bool and ``keyhash`` uint8, of shapes (rows,) and (rows, 16); ``keys`` and ``shards``
    have one entry a row, or none where they were not asked for. ``trip`` is the answer that came last.
    """

    step: Step
    columns: dict[str, Any]
    good: NDArray[np.bool_]
    keyhash: NDArray[np.uint8]
    keys: tuple[str, ...]
    shards: tuple[str, ...]
    size: int
    trip: Trip | None


class Feed:
    """A queue from one thread that delivers to one that takes."""

    def __init__(self, taken: Callable[[], None], stopped: Callable[[], None]) -> None:
        """``taken`` is called, in the trainer's thread, for each batch taken; ``stopped`` when it wants no more."""
        self._taken, self._stopped = taken, stopped
        self._changed = threading.Condition()
        self._batches: deque[Delivered] = deque()
        self._end: BaseException | None = None
        self._ended = False
        self.waited = 0.0
        """Seconds that the trainer has waited in `next`."""

    def put(self, batch: Delivered) -> None:
        """Deliver a batch. Does not block: the fetcher bounds what is on its way."""
        with self._changed:
            self._batches.append(batch)
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """Say that no more batches follow, for ``error`` or because the epoch is over. Only the first call counts."""
        with self._changed:
            if not self._ended:
                self._ended, self._end = True, error
                self._changed.notify_all()

    def next(self) -> Delivered | None:
        """Return the next batch, or None at the end of the epoch. Blocks; raises what ended the feed."""
        with self._changed:
            if not self._batches and not self._ended:
                began = time.perf_counter()
                while not self._batches and not self._ended:
                    self._changed.wait()
                self.waited += time.perf_counter() - began
            if not self._batches:
                if self._end is not None:
                    raise self._end
                return None
            batch = self._batches.popleft()
        self._taken()
        return batch

    def poll(self) -> Delivered | None:
        """Return the next batch where it is there. Does not block."""
        with self._changed:
            if not self._batches:
                return None
            batch = self._batches.popleft()
        self._taken()
        return batch

    def batches(self) -> list[Delivered]:
        """Take out what is delivered and not taken. Does not block."""
        with self._changed:
            batches = list(self._batches)
            self._batches.clear()
        return batches

    def close(self, error: BaseException | None = None) -> None:
        """Say that the trainer wants no more; `next` raises ``error``, if any, from now on. Does not block."""
        with self._changed:
            self._batches.clear()
            self._ended, self._end = True, error
            self._changed.notify_all()  # another thread of the trainer's may wait
        self._stopped()
