"""How far something is, on stderr: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Meter", "Pace"]

_SECONDS_BETWEEN_LINES = 5.0


class Pace:
    """Says when a line is due: every five seconds, the first after as many."""

    def __init__(self) -> None:
        """Begin to count."""
        self._said = time.monotonic()

    def due(self) -> bool:
        """Whether a line is due; the next one then is so many seconds later."""
        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_LINES:
            return False
        self._said = now
        return True


class Meter:
    """Shows the progress of one thing or several, each by its name. `show` may be called from any one thread."""

    def __init__(self, unit: str) -> None:
        """Show nothing yet. ``unit`` is what is counted, such as ``shards``."""
        self._unit = unit
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._pace = Pace()

    def show(self, what: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` are done of ``what``. Does not block but for the terminal."""
        if sys.stderr.isatty():
            self._move_bar(what, done, total)
        elif self._pace.due():
            print(f"{what}: {done:,} of {total:,} {self._unit}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bars down; what they last showed stays. Idempotent; another `show` begins anew."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def __enter__(self) -> Self:
        """Return the meter; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _move_bar(self, what: str, done: int, total: int) -> None:
        if self._bars is None:
            self._bars = _bars(self._unit)
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)


def _bars(unit: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
