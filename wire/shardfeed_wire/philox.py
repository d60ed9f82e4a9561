"""The random bits that order an epoch and augment a sample, equal on every machine for ever.

Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in numpy's
implementation, with key (seed, epoch) and counter (0, identity low, identity high, purpose). Only
its raw 64-bit output is used, which numpy promises never to change (NEP 19); `docs/protocol.md`
holds test vectors. Numpy increments the counter's first word before it makes the first four words.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Purpose", "permutation", "philox", "unit_interval"]

_WORD = (1 << 64) - 1


class Purpose(IntEnum):
    """What bits are drawn for, so that no two uses share them."""

    BLOCK_ORDER = 0
    INSIDE_BLOCK = 1
    AUGMENTATION = 2


def philox(seed: int, epoch: int, identity: int, purpose: Purpose) -> np.random.Philox:
    """Return the bit generator of one identity (a block's or a sample's number) for one purpose.

    ``seed`` and ``epoch`` lie in 0 .. 2**64 - 1, ``identity`` in 0 .. 2**128 - 1.
    """
    return np.random.Philox(
        key=np.array([seed, epoch], dtype=np.uint64),
        counter=np.array([0, identity & _WORD, identity >> 64, purpose], dtype=np.uint64),
    )


def permutation(bits: np.random.Philox, size: int) -> NDArray[np.int64]:
    """Return a permutation of ``0 .. size - 1``: the stable argsort of ``size`` raw words, int64 of shape (size,)."""
    return np.argsort(bits.random_raw(size), kind="stable")


def unit_interval(bits: np.random.Philox) -> float:
    """Return the next raw word's upper 53 bits as a float in [0, 1)."""
    return (int(bits.random_raw()) >> 11) * 2.0**-53
