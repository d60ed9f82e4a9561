"""What a trainer may ask to be told of a batch, beside its rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["BatchInfo"]


@dataclass(frozen=True, slots=True, eq=False)
class BatchInfo:
    """Where a batch's rows come from: the last element of a tuple, or ``__info__`` of a dict, with ``info=True``.

    ``shards`` and ``keys`` have one string a row. ``valid`` is a bool tensor of shape (rows,), False
    for rows that pad a step and for rows that stand in for a sample that failed.
    """

    epoch: int
    step: int
    shards: list[str]
    keys: list[str]
    valid: torch.Tensor
