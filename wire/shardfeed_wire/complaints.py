"""Lines in the log about strangers, limited in rate: who knocks a thousand times a second must not fill the disk."""

from __future__ import annotations

import logging
import time

__all__ = ["Complaints"]

_EVERY_SECONDS = 10.0

log = logging.getLogger("shardfeed.wire")


class Complaints:
    """Logs at most one line of a kind in ten seconds, and says how many it left out."""

    def __init__(self) -> None:
        """Have said nothing yet."""
        self._said: dict[str, tuple[float, int]] = {}

    def say(self, kind: str, text: str) -> None:
        """Log ``text`` as a warning, unless something of its ``kind`` was said a moment ago."""
        now = time.monotonic()
        last, left_out = self._said.get(kind, (-_EVERY_SECONDS, 0))
        if now - last < _EVERY_SECONDS:
            self._said[kind] = (last, left_out + 1)
            return
        self._said[kind] = (now, 0)
        more = f" ({left_out:,} more like it since the last such line)" if left_out else ""
        log.warning("%s%s", text, more)
