"""Loaders that would lose data of a `RemoteDataset`, recognised by the code that iterates it.

A data set is not told what is around it, so this looks at its caller, once an epoch. No framework is imported for that.
"""

from __future__ import annotations

import sys
from types import FrameType

from shardfeed.ranks import Ranks
from shardfeed_wire.errors import ConfigError

__all__ = ["caller", "is_data_loader", "is_stateful", "reads_ahead", "refuse_batching", "refuse_sharing"]

_SHARING = ("IterableDatasetShard", "DataLoaderDispatcher")
"""The classes of accelerate that give each rank a part of what a data set yields."""

_READING_AHEAD = ("DataLoaderShard", "DataLoaderDispatcher")
"""Those that look whether a batch is the last one before they give it."""

_COLLATING_SAMPLES = ("torch", "transformers")
"""Packages whose functions to collate with take samples, and would stack our batches."""


def caller() -> FrameType:
    """Return the frame that called the function which calls this."""
    return sys._getframe(2)


def refuse_sharing(frame: FrameType, ranks: Ranks) -> None:
    """Raise ConfigError where ``frame`` shares among ``ranks`` what one of several yields."""
    if _package(frame) != "accelerate" or _class(frame) not in _SHARING:
        return
    _, world_size = ranks.find()
    if world_size > 1:
        raise ConfigError(
            f"accelerate's {_class(frame)} shares among the ranks what this data set yields, and it yields one of "
            f"{world_size} ranks' batches already: all but one part in {world_size} of the data would be lost. Leave "
            "it out of accelerator.prepare(), and iterate the RemoteDataset itself; in a Hugging Face Trainer return "
            "it from get_train_dataloader() and get_eval_dataloader()"
        )


def refuse_batching(frame: FrameType) -> None:
    """Raise ConfigError where ``frame`` is a DataLoader's that makes batches of what are batches already.

    One with a ``collate_fn`` of the user's own is let be: it may know what it does.
    """
    names = frame.f_locals
    if not is_data_loader(frame) or not names.get("auto_collation"):
        return
    collate = names.get("collate_fn")
    module = getattr(collate, "__module__", None) or type(collate).__module__
    if module.split(".")[0] in _COLLATING_SAMPLES:
        raise ConfigError(
            "a DataLoader around this data set makes batches of batches, for RemoteDataset yields whole ones: pass "
            "batch_size=None to the DataLoader, or iterate the RemoteDataset itself; in a Hugging Face Trainer return "
            "it from get_train_dataloader() and get_eval_dataloader()"
        )


def is_data_loader(frame: FrameType) -> bool:
    """Say whether ``frame`` is of torch's DataLoader, which iterates a data set for others."""
    return _class(frame) == "_IterableDatasetFetcher"


def reads_ahead(frame: FrameType) -> bool:
    """Say whether ``frame`` is of a loader of accelerate's, which takes a batch more than it has given to the loop."""
    return _package(frame) == "accelerate" and _class(frame) in _READING_AHEAD


def is_stateful(frame: FrameType) -> bool:
    """Say whether ``frame`` is of torchdata's StatefulDataLoader, which knows what it has given to the loop."""
    return _package(frame) == "torchdata"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).split(".")[0]


def _class(frame: FrameType) -> str:
    return frame.f_code.co_qualname.split(".")[0]
