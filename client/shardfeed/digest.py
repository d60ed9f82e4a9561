"""The digest: what was delivered, as one number that adds over ranks and over resumed runs.

The sum modulo 2**128 of one 128-bit hash a row, of (epoch, position, shard and key as received).
The server sends BLAKE2b-128 of shard and key; two 64-bit halves of it are mixed with epoch and
position by the finaliser of SplitMix64 (Steele, Lea, Flood 2014). It tells runs apart that differ by
accident; it is no defence against a server that lies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["digest_rows"]

_MASK = np.uint64(0xFFFFFFFF)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def digest_rows(epoch: int, positions: NDArray[np.int64], keyhash: NDArray[np.uint8]) -> int:
    """Return the rows' part of the digest: an int in 0 .. 2**128 - 1.

    ``positions`` has shape (rows,), ``keyhash`` (rows, 16).
    """
    halves = np.ascontiguousarray(keyhash).view("<u8")
    place = _mix(positions.astype(np.uint64) ^ _mix(np.array([epoch], np.uint64)))
    low = _mix(halves[:, 0] ^ place)
    high = _mix(halves[:, 1] + place)
    total = 0
    for words, shift in ((low, 0), (high, 64)):
        lower, upper = int((words & _MASK).sum()), int((words >> np.uint64(32)).sum())
        total += (lower + (upper << 32)) << shift
    return total % (1 << 128)
