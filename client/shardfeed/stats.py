"""What a `RemoteDataset` has delivered, and what the trainer waited for: a value that does not change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final, Literal, TypeAlias

__all__ = ["Cause", "Stats", "Wait", "Waits"]

Cause: TypeAlias = Literal["none", "queue", "reading", "decoding", "collating", "wire"]

_SLOWER_TRAINER: Final = 0.05
"""A trainer that waits for less than this part of its time is the slower one."""

_WORTH_NAMING: Final = 0.1

_WORDS: Final[dict[Cause, str]] = {
    "queue": "the servers' queue",
    "reading": "reading",
    "decoding": "decoding",
    "collating": "collating",
    "wire": "the wire, and this process",
}

# What is done about it, and the causes about which the same is done.
_REMEDIES: Final[tuple[tuple[str, tuple[Cause, ...]], ...]] = (
    ("add loader servers", ("decoding", "queue", "collating")),
    ("add loader servers, or faster storage", ("reading",)),
    ("look at the network, or send less", ("wire",)),
)


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds waited in all, and the median and 99th percentile over the batches, to about a tenth."""

    seconds: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class Waits:
    """The trainer's waiting by cause.

    ``queue``: the batch was not asked for yet, as no server had room, or waited there for a worker; ``reading``,
    ``decoding`` (with transforms) and ``collating`` on the server; ``wire``: everything else between
    asking and having the batch, on the network and in this process.
    """

    queue: Wait = Wait()
    reading: Wait = Wait()
    decoding: Wait = Wait()
    collating: Wait = Wait()
    wire: Wait = Wait()

    def __iter__(self) -> Iterator[tuple[Cause, Wait]]:
        """Yield (cause, wait) in order."""
        for cause in _WORDS:
            yield cause, getattr(self, cause)


@dataclass(frozen=True, slots=True, repr=False)
class Stats:
    """Figures since the object was made; the last six are of the current pass.

    ``samples`` counts good rows without padding, ``bytes`` what was received for the batches
    delivered, ``masked`` the bad samples. ``seconds`` is the time from asking for the first batch to
    being through with the last, passes added up, and ``waited`` those of them that the trainer spent in ``next``;
    ``wait`` and ``waits`` have the same for a batch and by cause.
    ``rows_sent`` counts rows asked for, ``rows_hedged`` those asked for a second time because they
    were late, ``retried`` requests asked again elsewhere, ``stale`` answers that came too late,
    ``busy`` refusals for the time being, ``evacuated`` servers that fell silent.
    """

    steps: int = 0
    samples: int = 0
    bytes: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    masked: int = 0
    wait: Wait = Wait()
    waits: Waits = Waits()
    rows_sent: int = 0
    rows_hedged: int = 0
    retried: int = 0
    stale: int = 0
    busy: int = 0
    evacuated: int = 0

    @property
    def samples_per_second(self) -> float:
        """Samples delivered a second, waiting and training together."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes received a second for the batches delivered."""
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def bottleneck(self) -> Cause:
        """What the trainer waits for most; ``none`` where it hardly waits: it is the slower one itself."""
        if not self._waits_much():
            return "none"
        _, causes = self._remedy()
        return max(causes, key=self._seconds)

    @property
    def verdict(self) -> str:
        """One line: what to do to be faster, and why."""
        if not self.steps:
            return "nothing was delivered yet"
        if not self._waits_much():
            part = self.waited / self.seconds if self.seconds else 0.0
            return f"the trainer is the slower one: it waited for {part:.0%} of the time".replace("%", " %")
        remedy, causes = self._remedy()
        total = self._total()
        named = [cause for cause in causes if self._seconds(cause) >= _WORTH_NAMING * total]
        named = sorted(named, key=self._seconds, reverse=True) or [self.bottleneck]
        part = sum(self._seconds(cause) for cause in named) / total
        return f"{remedy}: {round(100 * part)} % of the waiting is {' and '.join(_WORDS[cause] for cause in named)}"

    def __str__(self) -> str:
        """Return some lines for a person, the verdict last."""
        rates = f"{self.samples_per_second:,.0f} samples/s, {self.bytes_per_second / 1e6:,.1f} MB/s"
        part = self.waited / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.steps:,} steps, {self.samples:,} samples in {self.seconds:.1f} s: {rates}",
            f"waited {self.waited:.1f} s, {round(100 * part)} % of the time; {_written(self.wait)}",
        ]
        total = self._total() or 1.0
        for cause, wait in self.waits:
            share = f"{round(100 * wait.seconds / total)} %"
            lines.append(f"  {_WORDS[cause]:<26} {wait.seconds:8.1f} s {share:>6}  {_written(wait)}")
        trouble = {field.name: getattr(self, field.name) for field in fields(self) if field.name in _TROUBLE}
        if any(trouble.values()):
            lines.append(", ".join(f"{name} {count}" for name, count in trouble.items() if count))
        return "\n".join([*lines, self.verdict])

    def __repr__(self) -> str:
        """Return it on one line."""
        return (
            f"<Stats: {self.steps} steps, {self.samples} samples, {self.samples_per_second:.0f} samples/s, "
            f"waited {self.waited:.1f} of {self.seconds:.1f} s: {self.verdict}>"
        )

    def _waits_much(self) -> bool:
        return self.waited > _SLOWER_TRAINER * self.seconds and self._total() > 0

    def _seconds(self, cause: Cause) -> float:
        wait: Wait = getattr(self.waits, cause)
        return wait.seconds

    def _total(self) -> float:
        return sum(wait.seconds for _, wait in self.waits)

    def _remedy(self) -> tuple[str, tuple[Cause, ...]]:
        return max(_REMEDIES, key=lambda remedy: sum(self._seconds(cause) for cause in remedy[1]))


_TROUBLE: Final = ("masked", "rows_hedged", "retried", "stale", "busy", "evacuated")


def _written(wait: Wait) -> str:
    return f"a batch p50 {_duration(wait.p50)}, p99 {_duration(wait.p99)}"


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
