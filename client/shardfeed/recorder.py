"""Keeps the figures of a `RemoteDataset` while it delivers."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from msgspec import UNSET, UnsetType

from shardfeed.stats import Stats, Waits
from shardfeed.waiting import Spread, Trip, split
from shardfeed_wire.messages import Waited

__all__ = ["Recorder"]

_MOST_UNTOLD: Final = 4_096


class Recorder:
    """Figures of what was delivered, of bounded size, in the trainer's thread; `untold` is for the session's."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._steps = self._samples = self._bytes = self._masked = 0
        self._seconds = 0.0
        self._last: float | None = None
        self._wait = Spread()
        self._causes = {cause: Spread() for cause, _ in Waits()}
        self._untold: deque[Waited] = deque(maxlen=_MOST_UNTOLD)

    @property
    def masked(self) -> int:
        """How many bad samples were masked."""
        return self._masked

    def begin(self) -> None:
        """A pass begins: the time since the one before does not count."""
        self._last = None

    def delivered(
        self, *, samples: int, size: int, masked: int, trip: Trip | None, waited: float, asked: float, now: float
    ) -> None:
        """Count a batch that the trainer asked for at ``asked`` and has ``now``, after waiting ``waited`` seconds."""
        self._steps += 1
        self._samples += samples
        self._bytes += size
        self._masked += masked
        self._seconds += now - (asked if self._last is None else self._last)
        self._last = now
        self._wait.add(waited)
        told = split(waited, now, trip) if waited and trip is not None else Waited(steps=1, wire=waited)
        for cause, spread in self._causes.items():
            spread.add(getattr(told, cause))
        self._untold.append(told)

    def ended(self, asked: float) -> None:
        """The trainer is through with the last batch of a pass, and asked for another at ``asked``."""
        if self._last is not None:
            self._seconds += asked - self._last
            self._last = None

    def untold(self) -> Waited | UnsetType:
        """Return what was not told to a server yet, once; UNSET where there is nothing. May be called in any thread."""
        steps, sums = 0, dict.fromkeys(self._causes, 0.0)
        while self._untold:
            told = self._untold.popleft()
            steps += told.steps
            for cause in sums:
                sums[cause] += getattr(told, cause)
        return Waited(steps=steps, **sums) if steps else UNSET

    def stats(self, counters: dict[str, int]) -> Stats:
        """Return the figures; ``counters`` are those of the pass under way."""
        wait = self._wait.wait()
        return Stats(
            steps=self._steps,
            samples=self._samples,
            bytes=self._bytes,
            seconds=self._seconds,
            waited=wait.seconds,
            masked=self._masked,
            wait=wait,
            waits=Waits(**{cause: spread.wait() for cause, spread in self._causes.items()}),
            **counters,
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy tells servers only of what it delivers itself."""
        return {**self.__dict__, "_untold": deque(maxlen=_MOST_UNTOLD)}
