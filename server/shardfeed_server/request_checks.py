"""What a server checks of a request before anything is done for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardfeed_wire.messages import MAX_REQUEST_ROWS, Get

__all__ = ["what_is_wrong"]


def what_is_wrong(get: Get, tensors: list[NDArray[Any]], block_sizes: NDArray[np.uint16]) -> str | None:
    """Say what is wrong with a request, if something is; ``block_sizes`` are its stream's."""
    if len(tensors) < 2 or tensors[0].dtype != np.uint32 or tensors[1].dtype != np.uint16:
        return "a Get brings uint32 blocks and uint16 samples inside them"
    block, index = tensors[:2]
    if block.ndim != 1 or block.shape != index.shape or not 1 <= len(block) <= MAX_REQUEST_ROWS:
        return f"a Get names 1 to {MAX_REQUEST_ROWS} samples, as many blocks as samples inside them"
    if int(block.max()) >= len(block_sizes) or bool((index >= block_sizes[block]).any()):
        return "a Get names a sample that the data set does not have"
    if not 0 <= get.seed < 1 << 64 or not 0 <= get.epoch < 1 << 64:
        return "seed and epoch lie in 0 .. 2**64 - 1"
    return None
