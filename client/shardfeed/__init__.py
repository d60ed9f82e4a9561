"""What a trainer imports: `RemoteDataset`, plain streams, and the errors they raise."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shardfeed.plain_sender import PlainSender
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
    from shardfeed.batch_info import BatchInfo
    from shardfeed.dataset import RemoteDataset
    from shardfeed.plain_dataset import PlainDataset

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
    "PlainDataset",
    "PlainSender",
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

_NEED_TORCH = {
    "BatchInfo": "shardfeed.batch_info",
    "PlainDataset": "shardfeed.plain_dataset",
    "RemoteDataset": "shardfeed.dataset",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: the command line does not, and torch takes seconds."""
    if name in _NEED_TORCH:
        globals()[name] = getattr(import_module(_NEED_TORCH[name]), name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
