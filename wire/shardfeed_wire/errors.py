"""Every exception that shardfeed raises on purpose, split by what the caller can do.

ShardfeedError
├── ConfigError (ValueError)          your configuration or argument is wrong: change it
│   └── EndpointError                   an endpoint URL cannot be used
├── RefusedError                      a server refuses, and says why
│   ├── UnknownStreamError              it serves no stream of that name
│   ├── DataMismatchError               it serves another data set under that name
│   ├── RecipeMismatchError             it would make other pixels from the same data
│   ├── VersionMismatchError            it speaks another version of the protocol
│   └── BadRequestError                 it cannot make sense of what was asked
├── DataError                         the data is bad
│   ├── TenbinError (ValueError)        bytes that are not tenbin
│   ├── MessageError (ValueError)       tenbin, but not a message of ours
│   ├── ShardError                      a shard is missing, broken, changed or unreadable
│   ├── SampleError (ValueError)        one sample is bad: shard, key, field, reason
│   └── ShapeError (ValueError)         rows of one batch have different shapes
├── NobodyAnswersError (TimeoutError) no server answers: start one, or look at the network
│   ├── ConnectError                    none within `connect_timeout`
│   └── StarvedError                    no useful answer within `timeout`
└── ChannelError                      a channel cannot be used any more
    ├── ClosedChannelError              you closed it
    └── BrokenChannelError              the peer or the network did

Each can be built from its message alone and carries the facts as attributes beside it, so that it
survives pickling and the re-raising that ``torch.utils.data.DataLoader`` does.
"""

from __future__ import annotations

__all__ = [
    "BadRequestError",
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
    "SampleError",
    "ShapeError",
    "ShardError",
    "ShardfeedError",
    "StarvedError",
    "TenbinError",
    "UnknownStreamError",
    "VersionMismatchError",
]


class ShardfeedError(Exception):
    """The root of the tree: catch it to catch all that shardfeed raises on purpose."""


class ConfigError(ShardfeedError, ValueError):
    """A configuration, an option or an argument is wrong; the message names it and what to write."""


class EndpointError(ConfigError):
    """An endpoint URL cannot be used: unknown scheme, no port, a brace that does not close."""


class RefusedError(ShardfeedError):
    """A server refuses, for a reason that asking again does not change."""


class UnknownStreamError(RefusedError):
    """The server serves no stream of that name; the message lists those it serves."""


class DataMismatchError(RefusedError):
    """Two parties mean different data sets by one stream's name."""


class RecipeMismatchError(RefusedError):
    """Two parties would make different pixels from the same data."""


class VersionMismatchError(RefusedError):
    """Client and server speak versions of the protocol that are too far apart; both are named."""


class BadRequestError(RefusedError):
    """The server cannot make sense of a request: a block or a sample that does not exist, too many rows."""


class DataError(ShardfeedError):
    """The data is bad: bytes, a shard, a sample."""


class TenbinError(DataError, ValueError):
    """Bytes that are not tenbin, or an array that tenbin cannot hold."""


class MessageError(DataError, ValueError):
    """A well-formed tenbin message that is not one of the protocol's."""


class ShardError(DataError):
    """A shard is missing, empty, truncated, not a tar, compressed, changed since, or unreadable.

    ``shard`` is the shard's name, or None where the message names several.
    """

    def __init__(self, message: str = "", *, shard: str | None = None) -> None:
        super().__init__(message)
        self.shard = shard


class SampleError(DataError, ValueError):
    """One sample is bad.

    ``shard``, ``key``, ``field`` (None where the whole sample is at fault) and ``reason`` say which
    and why; ``server_traceback`` is the worker's traceback, or an empty string.
    """

    def __init__(
        self,
        message: str = "",
        *,
        shard: str | None = None,
        key: str | None = None,
        field: str | None = None,
        reason: str = "",
        server_traceback: str = "",
    ) -> None:
        super().__init__(message)
        self.shard = shard
        self.key = key
        self.field = field
        self.reason = reason
        self.server_traceback = server_traceback


class ShapeError(DataError, ValueError):
    """Rows of one batch have different shapes or dtypes and the recipe says to stack them."""


class NobodyAnswersError(ShardfeedError, TimeoutError):
    """No server answers; the message names every endpoint and the last that was heard of it."""


class ConnectError(NobodyAnswersError):
    """No usable server within ``connect_timeout``."""


class StarvedError(NobodyAnswersError):
    """The next batch had no useful answer from any capable server for ``timeout`` seconds."""


class ChannelError(ShardfeedError):
    """A channel or listener cannot be used any more."""


class ClosedChannelError(ChannelError):
    """Used after ``close()``: the caller's own doing."""


class BrokenChannelError(ChannelError):
    """The peer or the network ended the channel. What was being sent may have arrived in whole, in part or not."""
