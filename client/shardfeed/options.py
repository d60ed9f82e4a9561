"""The arguments of a `RemoteDataset`, checked."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from shardfeed.peer import Framing
from shardfeed.plan import Cut, Tail
from shardfeed_wire.errors import ConfigError

__all__ = ["DigestOf", "OnError", "Options", "check_framing", "check_seconds", "check_text", "read_tail", "read_whole"]

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
        for name in ("batch_size", "seed", "lanes", "prefetch_bytes"):
            if (value := getattr(self, name)) is not None or name != "lanes":
                object.__setattr__(self, name, read_whole(name, value))
        if self.batch_transform is not None and not callable(self.batch_transform):
            raise ConfigError(f"batch_transform={self.batch_transform!r}: it is a function of a batch")
        for name in ("shuffle", "info"):
            object.__setattr__(self, name, bool(getattr(self, name)))
        if self.pin_memory and not getattr(torch, "accelerator", torch.cuda).is_available():
            raise ConfigError("pin_memory=True: torch finds no accelerator here; leave it out, or mend the driver")
        if self.prefetch_bytes < 1:
            raise ConfigError(f"prefetch_bytes={self.prefetch_bytes}: it must be at least 1")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed={self.seed}: it lies in 0 .. 2**64 - 1")
        if self.lanes is not None and not 1 <= self.lanes < 1 << 63:
            raise ConfigError(f"lanes={self.lanes}: it lies in 1 .. 2**63 - 1")
        check_seconds("timeout", self.timeout)
        self.cut(0, 0, 1)

    def cut(self, samples: int, rank: int, world_size: int) -> Cut:
        """Return how an epoch is cut; the tail is by default exact for one rank and padded for several."""
        tail: Tail = self.tail or ("exact" if world_size == 1 else "pad")
        return Cut(samples, self.batch_size, rank, world_size, tail)


def read_whole(name: str, value: object) -> int:
    """Return a whole number, of numpy or torch too, as Python's. Raises ConfigError for anything else."""
    try:
        return operator.index(value)  # type: ignore[arg-type]  # that is what is asked here
    except TypeError:
        raise ConfigError(f"{name}={value!r}: it is a whole number, not {type(value).__name__}") from None


def check_seconds(name: str, value: object) -> float:
    """Return seconds above 0, or raise ConfigError."""
    if not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{name}={value!r}: it is seconds, and above 0")
    return value


def check_text(name: str, value: object) -> str:
    """Return a text, or raise ConfigError."""
    if not isinstance(value, str):
        raise ConfigError(f"{name}={value!r}: it is text, not {type(value).__name__}")
    return value


def check_framing(framing: Framing) -> Framing:
    """Return it, or raise ConfigError."""
    if framing not in ("multipart", "single"):
        raise ConfigError(f"framing={framing!r}: it is 'multipart' or 'single'")
    return framing


def read_tail(tail: Tail | None, *, drop_last: bool) -> Tail | None:
    """Return the tail that both say. Raises ConfigError where they contradict each other."""
    if drop_last and tail not in (None, "drop"):
        raise ConfigError(f"drop_last=True contradicts tail={tail!r}; pass one of them")
    return "drop" if drop_last else tail
