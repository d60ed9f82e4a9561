"""The order of an epoch: seed -> blocks -> lanes -> positions -> samples. Pure arithmetic, no state.

A `Plan` strings all samples of a data set into a line and deals the line out over lanes; it
depends on (block sizes, seed, epoch, shuffle, lanes) alone. A `Cut` says which positions of the
plan each rank takes in each step; it depends on (samples, world size, batch size, tail) alone. No
cut changes the order, so a trainer may resume with another one. `docs/protocol.md` specifies both,
with test vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardfeed_wire.errors import ConfigError
from shardfeed_wire.philox import Purpose, permutation, philox

__all__ = ["Cut", "Plan", "Rows", "Tail", "default_lanes"]

Tail: TypeAlias = Literal["exact", "pad", "drop"]

_MOST_LANES = 256


def default_lanes(blocks: int, *, shuffle: bool) -> int:
    """Return the lanes where the user does not say: a lane a block, 256 at most; without shuffle 1.

    More lanes than blocks would put neighbours into one block. One lane without shuffle lets one
    rank read in file order.
    """
    return max(1, min(_MOST_LANES, blocks)) if shuffle else 1


class Plan:
    """The order of one epoch over ``samples`` samples."""

    def __init__(self, block_sizes: NDArray[np.integer], *, seed: int, epoch: int, shuffle: bool, lanes: int) -> None:
        """Order the blocks.

        ``block_sizes`` is 1-d, the samples of each block in manifest order. ``seed`` and ``epoch`` lie
        in 0 .. 2**64 - 1; ``lanes`` in 1 .. 2**63 - 1. Raises ConfigError otherwise. Takes time and memory
        in proportion to the number of blocks, not of samples.
        """
        for name, value in (("seed", seed), ("epoch", epoch)):
            if not 0 <= value < 1 << 64:
                raise ConfigError(f"{name}={value} is out of range: it must lie in 0 .. 2**64 - 1")
        if not 1 <= lanes < 1 << 63:
            raise ConfigError(f"lanes={lanes}: an epoch has at least 1 lane, and fewer than 2**63")
        self._sizes = np.asarray(block_sizes)
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        self._order = (
            permutation(philox(seed, epoch, 0, Purpose.BLOCK_ORDER), len(self._sizes)).astype(np.uint32)
            if shuffle
            else np.arange(len(self._sizes), dtype=np.uint32)
        )
        self._ends = np.cumsum(self._sizes[self._order], dtype=np.int64)
        self.samples = int(self._ends[-1]) if len(self._ends) else 0
        self.lanes = lanes
        self._lane_length, self._longer_lanes = divmod(self.samples, lanes)
        self._inside: dict[int, memoryview] = {}  # kept while their lanes may still be in them
        self._inside_room = 2 * lanes + 64

    def line(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where on the line the positions 0 .. samples - 1 of the epoch lie; int64, same shape."""
        offset, lane = np.divmod(positions, self.lanes)
        return lane * self._lane_length + np.minimum(lane, self._longer_lanes) + offset

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
        """Return the blocks (uint32) and samples inside them (uint16) at positions 0 .. samples - 1, in their shape."""
        line = self.line(positions)
        rank = np.searchsorted(self._ends, line, side="right")
        block = self._order[rank]
        offset = line - (self._ends[rank] - self._sizes[block])
        if not self._shuffle:
            return block, offset.astype(np.uint16)
        blocks = block.tolist()
        inside = self._inside
        for each in set(blocks).difference(inside):
            inside[each] = self._shuffled(each)
        index = [inside[each][place] for each, place in zip(blocks, offset.tolist(), strict=True)]
        for oldest in list(islice(inside, max(0, len(inside) - self._inside_room))):
            del inside[oldest]
        return block, np.array(index, np.uint16)

    def _shuffled(self, block: int) -> memoryview:
        """Return the order inside one block: uint16 of shape (block's size,).

        As a plain view, for looking up one number in it takes a third of what it takes in an array.
        """
        bits = philox(self._seed, self._epoch, block, Purpose.INSIDE_BLOCK)
        return permutation(bits, int(self._sizes[block])).astype(np.uint16).data


@dataclass(frozen=True, slots=True)
class Rows:
    """One rank's part of one step.

    ``positions``: int64 of shape (rows,), each in 0 .. samples - 1. ``padding``: bool of the same
    shape, True for a row that repeats a sample to fill the step. ``consumed``: samples consumed once
    the step is done, equal on every rank.
    """

    positions: NDArray[np.int64]
    padding: NDArray[np.bool_]
    consumed: int


@dataclass(frozen=True, slots=True)
class Cut:
    """How an epoch of ``samples`` samples is cut into steps and ranks."""

    samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    tail: Tail = "exact"

    def __post_init__(self) -> None:
        """Raise ConfigError for a cut that makes no sense."""
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: it must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank={self.rank} of world_size={self.world_size}: a rank lies in 0 .. world_size - 1")
        if self.tail not in ("exact", "pad", "drop"):
            raise ConfigError(f"tail={self.tail!r}: it is 'exact', 'pad' or 'drop'")

    @property
    def step_samples(self) -> int:
        """The samples of one step over all ranks: G."""
        return self.batch_size * self.world_size

    def steps(self, consumed: int = 0) -> int:
        """Return how many steps this rank still has in the epoch when ``consumed`` samples are done."""
        left = max(0, self.samples - consumed)
        whole, rest = divmod(left, self.step_samples)
        if self.tail == "drop" or not rest:
            return whole
        return whole + (1 if self.tail == "pad" or rest > self.rank else 0)

    def rows(self, consumed: int) -> Rows | None:
        """Return this rank's part of the step after ``consumed`` samples, or None at the end of the epoch."""
        if consumed >= self.samples or (self.tail == "drop" and consumed + self.step_samples > self.samples):
            return None
        end = consumed + self.step_samples
        positions = np.arange(
            consumed + self.rank, end if self.tail == "pad" else min(end, self.samples), self.world_size
        )
        padding = positions >= self.samples
        return Rows(positions % self.samples, padding, min(end, self.samples)) if len(positions) else None

    def walk(self, consumed: int = 0) -> Iterator[Rows]:
        """Yield this rank's part of every step that is left in the epoch."""
        while (rows := self.rows(consumed)) is not None:
            yield rows
            consumed = rows.consumed
