"""What one seed does to a simulated cluster, and how it ended."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field

from shardfeed.fetcher import FetchLimits
from shardfeed_wire.errors import ShardfeedError

__all__ = ["BLOCKS_A_SHARD", "SHARDS", "Outcome", "Schedule"]

SHARDS, BLOCKS_A_SHARD = 6, 4


@dataclass(frozen=True, slots=True)
class Schedule:
    """The cluster, and its faults. Rates are per second and server; probabilities are per message."""

    well: int
    """So many servers never fail, and read everything together; at most two faults befall the others. Then all
    must be delivered. 0: anything may happen."""
    servers: int
    whole: bool
    steps: tuple[int, ...]
    row_bytes: float
    varying_rows: bool
    limits: FetchLimits
    latest_start: float
    crash_rate: float
    hang_rate: float
    jump_rate: float
    most_faults: float
    lost: float
    twice: float
    busy: float
    unreadable: float
    unreadable_shards: float
    """How probable it is for each server and shard that it says it reads it, and never can."""
    other_data: float
    killer: int | None
    trainer_seconds: float
    row_seconds: tuple[float, ...] | None = None
    """Of each server; None: drawn."""

    @classmethod
    def of(cls, chance: random.Random) -> Schedule:
        """Draw a schedule."""
        well = chance.choice([0, 0, 1, 2])
        steps = tuple([chance.randint(1, 64)] * chance.randint(1, 40))
        row_bytes = chance.choice([10.0, 1e5])
        timeout = chance.choice([12.0, 40.0])
        return cls(
            well=well,
            servers=chance.randint(1 + well, 4),
            whole=chance.random() < 0.6,
            steps=(*steps[1:], chance.randint(1, steps[0])),
            row_bytes=row_bytes,
            varying_rows=chance.random() < 0.3,
            limits=FetchLimits(
                prefetch_bytes=round(row_bytes * steps[0] * chance.uniform(0.5, 8.0)),
                timeout=40.0 if well else timeout,  # two servers may fall silent for 10 s each, one after the other
                row_bytes=row_bytes,
                rows_per_request=chance.choice([8, 256]),
            ),
            latest_start=chance.choice([0.5, 5.0]),
            crash_rate=chance.choice([0.0, 0.05, 0.5]),
            hang_rate=chance.choice([0.0, 0.05]),
            jump_rate=chance.choice([0.0, 0.02]),
            most_faults=2 if well else math.inf,
            lost=0.0 if well else chance.choice([0.0, 0.0, 0.02]),
            twice=chance.choice([0.0, 0.1]),
            busy=chance.choice([0.0, 0.3]),
            unreadable=chance.choice([0.0, 0.0, 0.1]),
            unreadable_shards=chance.choice([0.0, 0.0, 0.2]),
            other_data=chance.choice([0.0, 0.5]),
            killer=None if well or chance.random() < 0.8 else chance.randrange(len(steps)),
            trainer_seconds=chance.choice([0.0, 0.01, 0.3]),
        )

    @classmethod
    def without_faults(cls, *row_seconds: float, steps: int = 200, rows: int = 64) -> Schedule:
        """Return servers of these paces that never fail, and a trainer that takes batches as they come."""
        return cls(
            well=0,
            servers=len(row_seconds),
            whole=True,
            steps=(rows,) * steps,
            row_bytes=1e5,
            varying_rows=False,
            limits=FetchLimits(prefetch_bytes=round(1e5 * rows * 16), timeout=60.0),
            latest_start=0.0,
            crash_rate=0.0,
            hang_rate=0.0,
            jump_rate=0.0,
            most_faults=0,
            lost=0.0,
            twice=0.0,
            busy=0.0,
            unreadable=0.0,
            unreadable_shards=0.0,
            other_data=0.0,
            killer=None,
            trainer_seconds=0.0,
            row_seconds=row_seconds,
        )


@dataclass(slots=True)
class Outcome:
    """How a schedule ended, and how often things happened on the way."""

    delivered: int = 0
    error: ShardfeedError | None = None
    seconds: float = 0.0
    happened: Counter[str] = field(default_factory=Counter)
