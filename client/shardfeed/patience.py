"""How long a trainer has waited, in time in which its process ran. Pure: the time is an argument."""

from __future__ import annotations

__all__ = ["Patience"]

_LATE_EVENT = 2.0
_SAY_WAITING = (5.0, 30.0, 120.0)


class Patience:
    """A clock that stands still while the process is stopped, and what it said when something useful came last."""

    def __init__(self, now: float) -> None:
        """Begin at ``now``, in seconds, as if something useful had just come."""
        self.now = now
        """Seconds, without those in which the process did not run. Never decreases."""
        self._seen = now
        self._lost = 0.0
        self._useful = now
        self._said = 0

    def advance(self, now: float) -> None:
        """Take the time of an event. One that comes late says that the process was stopped: the gap does not count."""
        if now - self._seen > _LATE_EVENT:
            self._lost += now - self._seen
        self._seen = now
        self.now = max(self.now, now - self._lost)  # rounding must not let it go back: a pace would be below 0

    def useful(self) -> None:
        """Note that something came that the trainer waited for, or that it has begun to wait."""
        self._useful, self._said = self.now, 0

    def idle(self) -> None:
        """Note that the trainer does not wait."""
        self._useful = self.now

    @property
    def waited(self) -> float:
        """Seconds since something useful came."""
        return self.now - self._useful

    def to_say(self) -> float | None:
        """Return the seconds of waiting that are now to be said, each once a wait; mostly None."""
        if self._said == len(_SAY_WAITING) or self.waited <= _SAY_WAITING[self._said]:
            return None
        self._said += 1
        return _SAY_WAITING[self._said - 1]
