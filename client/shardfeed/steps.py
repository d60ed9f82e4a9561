"""The steps of an epoch as they are asked for: the plan's samples, cut for a rank and shared by a loader's workers."""

from __future__ import annotations

from collections.abc import Iterator

from shardfeed.manifest_cache import ClientManifest
from shardfeed.plan import Cut, Plan
from shardfeed.routing import Step

__all__ = ["walk_steps"]


def walk_steps(
    plan: Plan, cut: Cut, manifest: ClientManifest, *, epoch: int, consumed: int, stride: int = 1
) -> Iterator[Step]:
    """Yield the rank's part of the step after ``consumed`` samples, and of every ``stride``-th one after it."""
    while (rows := cut.rows(consumed)) is not None:
        block, index = plan.locate(rows.positions)
        yield Step(
            number=consumed // cut.step_samples,
            epoch=epoch,
            next_consumed=consumed + stride * cut.step_samples,
            block=block,
            index=index,
            shard=manifest.block_shard[block],
            positions=rows.positions,
            padding=rows.padding,
        )
        consumed += stride * cut.step_samples
