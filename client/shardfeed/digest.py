"""The digest: what was delivered, as one number that adds over ranks and over resumed runs.

The sum modulo 2**128 of one 128-bit hash a row, of (epoch, position, shard and key as received).
The server sends BLAKE2b-128 of shard and key; where the content counts too, the client hashes that
together with the row's bytes as they came. Two 64-bit halves of it are mixed with epoch and
position by the finaliser of SplitMix64 (Steele, Lea, Flood 2014). It tells runs apart that differ by
accident; it is no defence against a server that lies.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from shardfeed.answers import Answer

__all__ = ["content_hash", "digest_rows"]

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


def content_hash(answer: Answer) -> NDArray[np.uint8]:
    """Return BLAKE2b-128 of each row's key hash and of its bytes in every column; uint8 of shape (rows, 16).

    What a batch pads does not count, so that it depends on the row alone.
    """
    rows = len(answer.keyhash)
    hashers = [blake2b(answer.keyhash[row].tobytes(), digest_size=16) for row in range(rows)]
    for column, parts in answer.columns:
        if column.kind == "dense":
            for hasher, row in zip(hashers, np.ascontiguousarray(parts[0]), strict=True):
                hasher.update(row.tobytes())
        else:
            values, ends = parts[0], parts[1].tolist()
            for row, hasher in enumerate(hashers):
                hasher.update(values[ends[row] : ends[row + 1]].tobytes())
                if column.kind == "ragged":
                    hasher.update(parts[2][row].tobytes())
    return np.frombuffer(b"".join(hasher.digest() for hasher in hashers), np.uint8).reshape(rows, 16)
