"""What a trainer waited for: its wait for a batch laid over what happened to that batch meanwhile. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from shardfeed.stats import Wait
from shardfeed_wire.messages import Seconds, Waited

__all__ = ["Spread", "Trip", "split"]

_FIRST: Final = 1e-5
_EACH_DECADE: Final = 10
_MOST: Final = 90


@dataclass(frozen=True, slots=True)
class Trip:
    """The request whose answer completed a batch: when it was asked and answered, and the server's account of it."""

    asked: float
    came: float
    seconds: Seconds


def split(waited: float, until: float, trip: Trip) -> Waited:
    """Say what the ``waited`` seconds up to ``until`` were spent on, as one step.

    Seen from the end, a batch was put together here, was on the wire, was worked on, waited in the
    server's queue, and was not asked for yet. A wait is counted for those that it overlaps: one
    that began in the midst of the decoding did not wait for the queue. Reading, decoding and collating take
    turns row by row, so they share the overlap as they share the work.
    """
    told = [min(max(0.0, value), 1e9) if math.isfinite(value) else 0.0 for value in _told(trip.seconds)]
    took = max(0.0, trip.came - trip.asked)
    scale = min(1.0, took / sum(told)) if sum(told) else 1.0  # no server worked for longer than it was asked
    queued, reading, decoding, collating = (scale * value for value in told)
    worked = reading + decoding + collating
    wire = min(waited, max(0.0, until - trip.came) + took - worked - queued)
    work = min(waited - wire, worked)
    share = work / worked if worked else 0.0
    return Waited(
        steps=1,
        queue=waited - wire - work,
        reading=share * reading,
        decoding=share * decoding,
        collating=share * collating,
        wire=wire,
    )


def _told(seconds: Seconds) -> tuple[float, float, float, float]:
    return seconds.waiting, seconds.reading, seconds.decoding, seconds.collating


class Spread:
    """How durations are spread: counts in buckets that grow by a quarter, from 10 microseconds to three hours."""

    __slots__ = ("_counts", "_total")

    def __init__(self) -> None:
        """Begin empty."""
        self._counts = [0] * (_MOST + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        bucket = 0 if seconds < _FIRST else min(_MOST, 1 + int(_EACH_DECADE * math.log10(seconds / _FIRST)))
        self._counts[bucket] += 1
        self._total += seconds

    def wait(self) -> Wait:
        """Return the sum and the quantiles, these to about 12 %."""
        return Wait(self._total, self._quantile(0.5), self._quantile(0.99))

    def _quantile(self, part: float) -> float:
        left = part * sum(self._counts)
        for bucket, count in enumerate(self._counts):
            left -= count
            if left <= 0 < count:
                return 0.0 if bucket == 0 else _FIRST * 10 ** ((bucket - 0.5) / _EACH_DECADE)
        return 0.0
