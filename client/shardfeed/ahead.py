"""The next epoch's first steps, asked for while the trainer takes the last ones of this, for it is likely to go on.

They belong to a pass of their own, so nothing of them reaches the trainer before it begins that
epoch: no batch, no error, no waiting. Where it begins another one, they are dropped.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

from shardfeed.feed import Feed
from shardfeed.fetch_events import FetchLimits, More
from shardfeed.fetching import Fetching
from shardfeed.manifest_cache import ClientManifest
from shardfeed.passes import Pass
from shardfeed.routing import Step

__all__ = ["Ahead"]

_STEPS = 4
"""All that servers make in vain where the trainer does not go on."""


class Ahead:
    """A pass that is begun ahead. Its methods are called in the event loop."""

    def __init__(
        self, next_pass: Pass, manifest: ClientManifest, begin: Callable[[Pass, Iterator[Step], FetchLimits], Fetching]
    ) -> None:
        """Plan the pass, in another thread, and then ask for its first steps."""
        self.next_pass = next_pass
        self.fetching: Fetching | None = None
        """The pass, once it is begun."""
        self._rest: Iterator[Step] = iter(())
        self._planning = asyncio.create_task(self._begin(manifest, begin))

    async def _begin(
        self, manifest: ClientManifest, begin: Callable[[Pass, Iterator[Step], FetchLimits], Fetching]
    ) -> None:
        try:
            planning = asyncio.get_running_loop().run_in_executor(None, self._plan, manifest)
        except RuntimeError:  # the interpreter is ending, and starts no thread any more
            return
        first, self._rest = await planning
        self.fetching = begin(self.next_pass, iter(first), self.next_pass.limits.share(2))

    def _plan(self, manifest: ClientManifest) -> tuple[list[Step], Iterator[Step]]:
        steps = self.next_pass.steps(manifest)
        return list(itertools.islice(steps, _STEPS)), steps

    def take_up(self, feed: Feed) -> Fetching | None:
        """Go on with the pass, into the feed of who begins it now; None where it failed or is not begun."""
        if self.fetching is None or self.fetching.over:
            self.drop()
            return None
        self.fetching.go_on(feed, More(self._rest, self.next_pass.limits))
        return self.fetching

    def drop(self) -> None:
        """Forget it: what was asked for is cancelled."""
        self._planning.cancel()
        if self.fetching is not None:
            self.fetching.end()
