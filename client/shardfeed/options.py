"""The arguments of a `RemoteDataset`, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from shardfeed.plan import Cut, Tail
from shardfeed_wire.errors import ConfigError

__all__ = ["DigestOf", "OnError", "Options"]

OnError: TypeAlias = Literal["raise", "mask"]
DigestOf: TypeAlias = Literal["keys", "content"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a `RemoteDataset` was asked for; its docstring says what each means. Raises ConfigError for nonsense."""

    batch_size: int
    seed: int
    shuffle: bool
    lanes: int | None
    tail: Tail | None
    on_error: OnError
    prefetch_bytes: int
    timeout: float
    pin_memory: bool
    batch_transform: Callable[[Any], Any] | None
    info: bool
    allow_recipe_change: bool
    digest: DigestOf

    def __post_init__(self) -> None:
        """Check."""
        if self.on_error not in ("raise", "mask"):
            raise ConfigError(f"on_error={self.on_error!r}: it is 'raise' or 'mask'")
        if self.digest not in ("keys", "content"):
            raise ConfigError(f"digest={self.digest!r}: it is 'keys' or 'content'")
        if self.prefetch_bytes < 1:
            raise ConfigError(f"prefetch_bytes={self.prefetch_bytes}: it must be at least 1")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed={self.seed}: it lies in 0 .. 2**64 - 1")
        if self.lanes is not None and not 1 <= self.lanes < 1 << 63:
            raise ConfigError(f"lanes={self.lanes}: it lies in 1 .. 2**63 - 1")
        if not self.timeout > 0:
            raise ConfigError(f"timeout={self.timeout}: it is seconds, and above 0")
        self.cut(0, 0, 1)

    def cut(self, samples: int, rank: int, world_size: int) -> Cut:
        """Return how an epoch is cut; the tail is by default exact for one rank and padded for several."""
        tail: Tail = self.tail or ("exact" if world_size == 1 else "pad")
        return Cut(samples, self.batch_size, rank, world_size, tail)
