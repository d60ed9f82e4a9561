"""One pass over an epoch, said in full: so that the pass that follows can be said, too, before it is begun."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shardfeed.bookmark import Order
from shardfeed.delivery import BatchOptions
from shardfeed.fetch_events import FetchLimits
from shardfeed.manifest_cache import ClientManifest
from shardfeed.plan import Cut, Plan
from shardfeed.routing import Step
from shardfeed.steps import walk_steps

__all__ = ["Pass"]


@dataclass(frozen=True, slots=True)
class Pass:
    """What is asked for: two equal ones bring the same batches.

    ``consumed`` is where this process's first step begins, ``origin`` where it does in a whole epoch;
    ``stride`` how many processes share the steps.
    """

    order: Order
    cut: Cut
    epoch: int
    consumed: int
    origin: int
    stride: int
    limits: FetchLimits
    options: BatchOptions

    def steps(self, manifest: ClientManifest) -> Iterator[Step]:
        """Plan the epoch and return its steps. Takes time in proportion to the data set's blocks."""
        order = self.order
        plan = Plan(manifest.block_sizes, seed=order.seed, epoch=self.epoch, shuffle=order.shuffle, lanes=order.lanes)
        return walk_steps(plan, self.cut, manifest, epoch=self.epoch, consumed=self.consumed, stride=self.stride)

    def following(self) -> Pass:
        """Return the pass that comes next where nobody says otherwise."""
        return replace(self, epoch=self.epoch + 1, consumed=self.origin)
