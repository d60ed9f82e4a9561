"""The random bits of one sample: for the built-in transforms, for a Python transform, and for its seeds.

All three come from Philox with key (seed, epoch) and purpose "augmentation" (see
``shardfeed_wire.philox``), from distinct identities, so that what one of them draws never moves
another: the sample's number itself for the built-in transforms; that plus 2**127 for the generator
of a Python transform; that plus 2**126 for the seeds of global generators. Built-in transforms use
raw words only, which numpy promises never to change.
"""

from __future__ import annotations

import numpy as np

from shardfeed_wire.philox import Purpose, philox, unit_interval

__all__ = ["Draws"]

_GENERATOR = 1 << 127
_SEEDS = 1 << 126


class Draws:
    """What is drawn for one sample: of number ``number`` in the manifest, in one epoch under one seed."""

    __slots__ = ("_bits", "_key")

    def __init__(self, seed: int, epoch: int, number: int) -> None:
        self._key = (seed, epoch, number)
        self._bits: np.random.Philox | None = None

    def unit(self) -> float:
        """Return the next float in [0, 1) for a built-in transform."""
        if self._bits is None:  # made at the first draw: many recipes draw nothing
            self._bits = philox(*self._key, Purpose.AUGMENTATION)
        return unit_interval(self._bits)

    def between(self, low: float, high: float) -> float:
        """Return the next float in [low, high)."""
        return low + self.unit() * (high - low)

    def below(self, bound: int) -> int:
        """Return the next integer in 0 .. bound - 1."""
        return min(int(self.unit() * bound), bound - 1)

    def generator(self) -> np.random.Generator:
        """Return a new generator for a Python transform, always in the same state."""
        seed, epoch, number = self._key
        return np.random.Generator(philox(seed, epoch, number | _GENERATOR, Purpose.AUGMENTATION))

    def seeds(self) -> tuple[int, int]:
        """Return two integers to seed other generators with: below 2**63 and below 2**32."""
        seed, epoch, number = self._key
        long, short = philox(seed, epoch, number | _SEEDS, Purpose.AUGMENTATION).random_raw(2).tolist()
        return long >> 1, short >> 32
