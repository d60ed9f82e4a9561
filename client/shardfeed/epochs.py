"""Which epoch comes next, in memory that a DataLoader's worker processes share with their parent."""

from __future__ import annotations

import mmap
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shardfeed_wire.errors import ConfigError

__all__ = ["Epochs"]

_MOST_WORKERS = 1_024
_WORKERS, _IN_WORKERS, _BEGUN = 0, 1, 2
_FIRST = 3
_PASSES = _FIRST + _MOST_WORKERS
_STARTS = _PASSES + _MOST_WORKERS
_WORDS = _STARTS + _MOST_WORKERS
_NEVER = -1
_END = (1 << 63) - 1
"""What comes after the last epoch; the words hold it, too."""


class Epochs:
    """The epoch that each worker begins next, and where it began the one before.

    One that starts late must not take an epoch for finished because a faster one has finished its
    share: the epoch is the least over the workers. Without a DataLoader there is one "worker".

    The memory is a mapping without a name or a descriptor, which forked workers share. Only where a
    worker is spawned does a shared tensor take its place, for that can be passed on.
    """

    def __init__(self) -> None:
        """Begin with epoch 0."""
        self._tensor: torch.Tensor | None = None
        self._shared: NDArray[np.int64] = np.frombuffer(mmap.mmap(-1, 8 * _WORDS), np.int64)
        self._shared[_WORKERS] = 1
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Share the memory with a process that is being spawned; else give a copy."""
        if get_spawning_popen() is None:
            return {"words": self._shared.tolist()}
        if self._tensor is None:
            tensor = torch.from_numpy(self._shared.copy())
            tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
            self._tensor, self._shared = tensor, tensor.numpy()
        return {"tensor": self._tensor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the memory shared, or a copy."""
        self.__init__()  # type: ignore[misc]  # a copy begins as a new one does
        if "tensor" in state:
            self._tensor, self._shared = state["tensor"], state["tensor"].numpy()
        else:
            self._shared[:] = state["words"]

    @property
    def current(self) -> int:
        """The epoch that comes next, or is under way."""
        return int(self._shared[_FIRST : _FIRST + int(self._shared[_WORKERS])].min())

    @property
    def in_workers(self) -> bool:
        """Whether worker processes, not this one, iterated last."""
        return bool(self._shared[_IN_WORKERS])

    def set(self, epoch: int) -> None:
        """Let ``epoch`` come next, in every process. Raises ConfigError where it is out of range."""
        if not 0 <= epoch < _END:
            raise ConfigError(f"epoch={epoch}: it lies in 0 .. 2**63 - 2")
        self._shared[_FIRST:_PASSES] = epoch
        self._forget()

    def begin(self, workers: int, *, in_workers: bool) -> int:
        """Note that one of ``workers`` begins, and return its epoch. Raises ConfigError after the last."""
        if workers > _MOST_WORKERS:
            raise ConfigError(f"num_workers={workers}: at most {_MOST_WORKERS} share a RemoteDataset")
        self._shared[_WORKERS] = workers
        self._shared[_IN_WORKERS] = in_workers
        if self.current == _END:
            raise ConfigError("epoch 2**63 - 2 was the last that there is; call set_epoch with a smaller one")
        return self.current

    def started(self, epoch: int, worker: int, consumed: int) -> None:
        """Note that ``worker`` begins its share of ``epoch`` when ``consumed`` samples of it are done."""
        self._shared[_STARTS + worker] = min(consumed, _END)
        self._shared[_PASSES + worker] = epoch
        self._shared[_BEGUN] = epoch

    @property
    def begun(self) -> tuple[int, int] | None:
        """The epoch of the pass begun last, and the samples consumed before it; None where there is none since `set`.

        Workers run ahead of their loop: when they have made all its batches `current` is the next epoch, and the loop
        is in this one.
        """
        epoch, workers = int(self._shared[_BEGUN]), int(self._shared[_WORKERS])
        taking_part = self._shared[_PASSES : _PASSES + workers] == epoch
        if epoch == _NEVER or not taking_part.any():
            return None
        return epoch, int(self._shared[_STARTS : _STARTS + workers][taking_part].min())

    def finish(self, epoch: int, worker: int) -> int:
        """Note that ``worker`` has done its share of ``epoch``; return what it begins next, as `set` may have said."""
        if int(self._shared[_FIRST + worker]) == epoch:
            self._shared[_FIRST + worker] = epoch + 1
            if not self.in_workers:
                self._shared[_FIRST:_PASSES] = epoch + 1
        return int(self._shared[_FIRST + worker])

    def _forget(self) -> None:
        self._shared[_BEGUN] = self._shared[_PASSES:_STARTS] = _NEVER
