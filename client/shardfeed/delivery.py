"""A step whose pieces are answered becomes what the trainer takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardfeed.answers import Answer
from shardfeed.collate import Part, assemble
from shardfeed.digest import content_hash
from shardfeed.feed import Delivered
from shardfeed.routing import Piece, Step
from shardfeed.waiting import Trip

__all__ = ["BatchOptions", "deliver"]


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How answers become batches: see `RemoteDataset`."""

    seed: int
    keys: bool
    on_error: str
    pin_memory: bool
    content: bool


def deliver(step: Step, pieces: tuple[Piece, ...], options: BatchOptions, trip: Trip | None) -> Delivered:
    """Put a step's answers together, the last of which came by ``trip``; raises as `collate.assemble` does."""
    parts = [Part(piece.answer, piece.select) for piece in pieces if isinstance(piece.answer, Answer)]
    columns, good = assemble(parts, step.rows, on_error=options.on_error, pin_memory=options.pin_memory)
    keyhash = np.empty((step.rows, 16), np.uint8)
    keys, shards = [""] * step.rows, [""] * step.rows
    for part in parts:
        keyhash[part.select] = content_hash(part.answer) if options.content else part.answer.keyhash
        if options.keys:
            for row, key, shard in zip(part.select.tolist(), part.answer.keys, part.answer.shards, strict=True):
                keys[row], shards[row] = key, shard
    size = sum(piece.size for piece in pieces)
    named = (tuple(keys), tuple(shards)) if options.keys else ((), ())
    return Delivered(step, columns, good, keyhash, *named, size, trip)
