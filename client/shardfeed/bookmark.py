"""The bookmark: where a trainer stands, in a few hundred bytes that any number of ranks and servers can go on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from shardfeed_wire.errors import ConfigError

__all__ = ["Bookmark", "Order", "read_bookmark"]

_VERSION = 1


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What an epoch's order and pixels depend on: the fingerprints of ``data`` and ``recipe``, and the arguments."""

    data: str
    recipe: str
    seed: int
    shuffle: bool
    lanes: int


class Bookmark(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place in an order.

    ``consumed`` counts the samples of ``epoch`` consumed over all ranks. ``workers`` and ``worker``
    are set in what a DataLoader's worker saves: ``consumed`` is then where its own next step begins.
    """

    data: str
    recipe: str
    seed: int
    epoch: int
    shuffle: bool
    lanes: int
    consumed: int
    workers: int = 1
    worker: int = 0
    version: int = 0

    @classmethod
    def at(cls, order: Order, epoch: int, consumed: int, worker: int = 0, workers: int = 1) -> Bookmark:
        """Return the bookmark of a place in ``order``."""
        fields = msgspec.structs.asdict(order)
        return cls(**fields, epoch=epoch, consumed=consumed, worker=worker, workers=workers, version=_VERSION)

    def state(self) -> dict[str, Any]:
        """Return it as a dict of what JSON knows."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields

    def check(self, *, seed: int, shuffle: bool, lanes: int | None) -> None:
        """Raise ConfigError where the arguments of a RemoteDataset ask for another order than the bookmark is of."""
        given = {"seed": seed, "shuffle": shuffle, **({} if lanes is None else {"lanes": lanes})}
        saved = {name: getattr(self, name) for name in given}
        differing = [f"{name}={saved[name]}, not {given[name]}" for name in given if saved[name] != given[name]]
        if differing:
            raise ConfigError(
                f"the bookmark was made with {', '.join(differing)}; pass the same to RemoteDataset, or begin anew"
            )


def read_bookmark(state: Mapping[str, Any]) -> Bookmark:
    """Return the bookmark in a ``state_dict``; raises ConfigError, with what is wrong, where there is none."""
    try:
        bookmark = msgspec.convert(dict(state), Bookmark)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise ConfigError(f"this is not a bookmark of RemoteDataset.state_dict(): {error}") from None
    if bookmark.version != _VERSION:
        raise ConfigError(f"the bookmark is of version {bookmark.version}; this shardfeed reads version {_VERSION}")
    numbers = (bookmark.consumed, bookmark.epoch, bookmark.seed, bookmark.lanes - 1)
    in_range = min(numbers) >= 0 and max(bookmark.epoch, bookmark.lanes) < 1 << 63
    if not in_range or not 0 <= bookmark.worker < bookmark.workers:
        raise ConfigError("this is not a bookmark of RemoteDataset.state_dict(): a number in it is out of range")
    return bookmark
