"""A virtual clock with an agenda, and a client's process that is stopped now and then."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable

__all__ = ["Clock"]


class Clock:
    """The time of a simulation, its chance, and the counts of what happened."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 0.0
        self.over = False
        self.happened: Counter[str] = Counter()
        self._frozen_until = 0.0
        self._frozen = 0.0
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []

    @property
    def own_time(self) -> float:
        """The time in which the client's process ran."""
        return self.now - self._frozen

    def step(self) -> None:
        """Let the next thing happen."""
        self.now, _, happen = heapq.heappop(self._agenda)
        happen()

    def at(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen after some seconds; never where they are infinite."""
        self._at_time(self.now + seconds, happen)

    def _at_time(self, when: float, happen: Callable[[], None]) -> None:
        if when < math.inf:
            heapq.heappush(self._agenda, (when, next(self._order), happen))

    def interval(self, rate: float) -> float:
        """Draw the seconds until something that happens at a rate."""
        return self.chance.expovariate(rate) if rate else math.inf

    def jump(self, rate: float) -> None:
        """Stop the client's process for a while, and again later."""
        length = self.chance.uniform(3, 60)
        self._frozen_until, self._frozen = self.now + length, self._frozen + length
        self.happened["jumps"] += 1
        self.at(length + self.interval(rate), lambda: self.jump(rate))

    def in_client(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen in the client's process, which may be stopped then.

        All that came meanwhile happens, in its order, at the very time at which the process goes on.
        """

        def when_running() -> None:
            if self.over:
                return
            if self.now < self._frozen_until:
                self._at_time(self._frozen_until, when_running)
            else:
                happen()

        self.at(seconds, when_running)
