"""What a trainer imports: `RemoteDataset`, and the errors it raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardfeed.stats import Stats
from shardfeed_wire.errors import (
    BadRequestError,
    BrokenChannelError,
    ChannelError,
    ClosedChannelError,
    ConfigError,
    ConnectError,
    DataError,
    DataMismatchError,
    EndpointError,
    MessageError,
    NobodyAnswersError,
    RecipeMismatchError,
    RefusedError,
    SampleError,
    ShapeError,
    ShardError,
    ShardfeedError,
    StarvedError,
    TenbinError,
    UnknownStreamError,
    VersionMismatchError,
)

if TYPE_CHECKING:
    from shardfeed.dataset import BatchInfo, RemoteDataset

__all__ = [
    "BadRequestError",
    "BatchInfo",
    "BrokenChannelError",
    "ChannelError",
    "ClosedChannelError",
    "ConfigError",
    "ConnectError",
    "DataError",
    "DataMismatchError",
    "EndpointError",
    "MessageError",
    "NobodyAnswersError",
    "RecipeMismatchError",
    "RefusedError",
    "RemoteDataset",
    "SampleError",
    "ShapeError",
    "ShardError",
    "ShardfeedError",
    "StarvedError",
    "Stats",
    "TenbinError",
    "UnknownStreamError",
    "VersionMismatchError",
]

_NEED_TORCH = ("BatchInfo", "RemoteDataset")


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: the command line does not, and torch takes seconds."""
    if name in _NEED_TORCH:
        from shardfeed import dataset

        for needed in _NEED_TORCH:
            globals()[needed] = getattr(dataset, needed)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
