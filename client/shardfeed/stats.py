"""What a `RemoteDataset` has delivered, and how long the trainer waited for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures since the object was made; the last six are of the current pass.

    ``samples`` counts good rows without padding, ``bytes`` what was received for the batches
    delivered, ``waited`` the seconds that the trainer spent in ``next``, ``masked`` the bad samples.
    ``rows_sent`` counts rows asked for, ``rows_hedged`` those asked for a second time because they
    were late, ``retried`` requests asked again elsewhere, ``stale`` answers that came too late,
    ``busy`` refusals for the time being, ``evacuated`` servers that fell silent.
    """

    steps: int = 0
    samples: int = 0
    bytes: int = 0
    waited: float = 0.0
    masked: int = 0
    rows_sent: int = 0
    rows_hedged: int = 0
    retried: int = 0
    stale: int = 0
    busy: int = 0
    evacuated: int = 0

    def add(self, *, samples: int, size: int, masked: int, waited: float) -> Stats:
        """Return the figures with one more batch in them."""
        return replace(
            self,
            steps=self.steps + 1,
            samples=self.samples + samples,
            bytes=self.bytes + size,
            masked=self.masked + masked,
            waited=self.waited + waited,
        )
