"""Which rank of how many this process is."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch.distributed

from shardfeed_wire.errors import ConfigError

__all__ = ["find_rank"]

log = logging.getLogger("shardfeed")


def find_rank(rank: int | None, world_size: int | None, process_group: Any) -> tuple[int, int]:
    """Return (rank, world size), and say once in the log where they come from.

    Given numbers win, then a process group, then torch.distributed where it is initialised, then
    the variables RANK and WORLD_SIZE, else 0 of 1. Raises ConfigError for half a pair or a rank out of range.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError("pass both rank= and world_size=, or neither")
    if rank is not None and world_size is not None:
        if process_group is not None:
            raise ConfigError("pass either rank= and world_size=, or process_group=, not both")
        source = "as given"
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(process_group), torch.distributed.get_world_size(process_group)
        source = "from torch.distributed"
        if rank < 0:
            raise ConfigError("this process is no member of the process_group given")
    elif process_group is not None:
        raise ConfigError("process_group= needs torch.distributed to be initialised first")
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
