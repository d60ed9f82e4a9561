"""How many connections the listeners of a process may have, all together: half of its descriptors.

So that who connects and says nothing leaves some for workers, shards, and clients that work.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from weakref import WeakSet

__all__ = ["Share", "most_connections"]

_KEPT_DESCRIPTORS = 256
"""Of those the process may have: for workers, shards and what else is no connection."""

_shares: WeakSet[Share] = WeakSet()


class Share:
    """One listener's part in what all may have: a count of its connections, and of those that said nothing yet."""

    def __init__(self, cut_silent: Callable[[], None]) -> None:
        """Have none. ``cut_silent`` ends the connection that has said nothing for the longest time."""
        self.connections = self.silent = 0
        self._cut_silent = cut_silent
        _shares.add(self)

    def make_room(self) -> bool:
        """Have one connection that said nothing ended where all listeners have more than they may; say whether."""
        if sum(share.connections for share in _shares) <= most_connections():
            return False
        max(_shares, key=lambda share: share.silent)._cut_silent()
        return True

    def close(self) -> None:
        """Count no more."""
        _shares.discard(self)


def most_connections() -> int:
    """Return how many there may be, by the descriptors that this process may have at present."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(_KEPT_DESCRIPTORS // 4, (soft - _KEPT_DESCRIPTORS) // 2)
