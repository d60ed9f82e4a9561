"""Which rank of how many this process is."""

from __future__ import annotations

import logging
import os
from typing import Any

import msgspec
import torch.distributed
from torch.utils.data import get_worker_info

from shardfeed.bookmark import Order
from shardfeed.options import read_whole
from shardfeed.plan import Cut
from shardfeed.ray_cluster import ray_train_rank
from shardfeed_wire.errors import ConfigError

__all__ = ["Ranks", "find_rank"]

log = logging.getLogger("shardfeed")


def find_rank(rank: int | None, world_size: int | None, process_group: Any) -> tuple[int, int]:
    """Return (rank, world size), and say once in the log where they come from.

    Given numbers win, then a process group, then torch.distributed where it is initialised, then
    Ray Train's context, then the variables RANK and WORLD_SIZE, else 0 of 1. Raises ConfigError for
    half a pair or a rank out of range.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError("pass both rank= and world_size=, or neither")
    if rank is not None and world_size is not None:
        if process_group is not None:
            raise ConfigError("pass either rank= and world_size=, or process_group=, not both")
        rank, world_size = read_whole("rank", rank), read_whole("world_size", world_size)
        source = "as given"
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(process_group), torch.distributed.get_world_size(process_group)
        source = "from torch.distributed"
        if rank < 0:
            raise ConfigError("this process is no member of the process_group given")
    elif process_group is not None:
        raise ConfigError("process_group= needs torch.distributed to be initialised first")
    elif (of_ray := ray_train_rank()) is not None:
        (rank, world_size), source = of_ray, "from Ray Train"
    elif "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        try:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        except ValueError as error:
            raise ConfigError(f"the variables RANK and WORLD_SIZE must hold numbers: {error}") from None
        source = "from the variables RANK and WORLD_SIZE"
    else:
        rank, world_size, source = 0, 1, "no process group and no RANK variable found"
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank={rank} of world_size={world_size}: a rank lies in 0 .. world_size - 1")
    log.info("rank %d of %d (%s)", rank, world_size, source)
    return rank, world_size


class Ranks:
    """The ranks that share an epoch: which one this is, found when first needed, and whether they agree."""

    def __init__(self, rank: int | None, world_size: int | None, process_group: Any) -> None:
        """Keep what was given; ask nobody yet."""
        self._given = rank, world_size
        self._group = process_group
        self._found: tuple[int, int] | None = None
        self._settled = False
        self._compared = False

    def find(self) -> tuple[int, int]:
        """Return (rank, world size); see `find_rank`.

        Found again once torch.distributed is initialised: a framework may do that after somebody asked for `len`.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._found is None or (distributed and not self._settled):
            self._found = find_rank(*self._given, self._group)
            self._settled = distributed
        return self._found

    def compare(self, order: Order, cut: Cut, *, epoch: int, consumed: int) -> None:
        """Compare what decides the order with the other ranks, once, where a process group says who they are.

        A collective call: blocks until every rank of the group makes it. Raises ConfigError, the same on
        every rank, that names the ranks which differ from rank 0, and in what.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._compared or self._given != (None, None) or not distributed or get_worker_info() is not None:
            return
        self._compared = True
        facts: dict[str, Any] = {
            **msgspec.structs.asdict(order),
            "epoch": epoch,
            "samples consumed": consumed,
            "samples of a step": cut.step_samples,
            "tail": cut.tail,
        }
        everyone: list[dict[str, Any]] = [{} for _ in range(self.find()[1])]
        torch.distributed.all_gather_object(everyone, facts, group=self._group)
        differing = [
            f"rank {rank}: {name} is {theirs[name]}, not {everyone[0][name]}"
            for rank, theirs in enumerate(everyone)
            for name in facts
            if theirs[name] != everyone[0][name]
        ]
        if differing:
            raise ConfigError(
                f"ranks disagree with rank 0, so that their batches would overlap: {'; '.join(differing)}. "
                "Give every rank the same arguments and bookmark"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the process group behind, which does not pickle; the rank found goes along."""
        return {**self.__dict__, "_group": None}
