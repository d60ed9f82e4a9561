"""Which row of a request kills workers: found by counting, so that it can be left alone."""

from __future__ import annotations

from shardfeed_server.jobs import Progress

__all__ = ["Strikes", "WorkerDiedError"]

_STRIKES = 2
"""Deaths of workers at one row after which the row is bad; at no row in particular, after which all is hopeless."""

_MOST_BAD_ROWS = 16
"""A request with more deadly rows than this is given up: it is not the samples that are at fault."""


class WorkerDiedError(Exception):
    """A worker died at ``row``, or between rows. Stays inside the server."""

    def __init__(self, cause: str, row: int) -> None:
        super().__init__(cause)
        self.row = row


class Strikes:
    """The deaths of workers at one request."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.bad_rows: dict[int, str] = {}
        self.hopeless = False
        self.last = ""

    def add(self, row: int, cause: str) -> None:
        """Count a death. The second at a row makes it bad; the second between rows makes all hopeless."""
        self.last = cause
        self._counts[row] = self._counts.get(row, 0) + 1
        if self._counts[row] >= _STRIKES and row == Progress.BETWEEN:
            self.hopeless = True
        elif self._counts[row] >= _STRIKES:
            self.bad_rows[row] = f"{_STRIKES} worker processes died at this sample ({cause})"
            self.hopeless = len(self.bad_rows) > _MOST_BAD_ROWS
