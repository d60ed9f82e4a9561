"""What the servers of one stream agree on, and the error where one of them does not."""

from __future__ import annotations

from shardfeed_wire.errors import (
    DataMismatchError,
    MessageError,
    RecipeMismatchError,
    RefusedError,
    UnknownStreamError,
)
from shardfeed_wire.messages import StreamInfo, Welcome

__all__ = ["Agreement"]


class Agreement:
    """The first server that serves the stream sets what it is; the others must serve the same."""

    def __init__(self, stream: str) -> None:
        """Agree on nothing yet."""
        self._stream = stream
        self._first = ""
        self._info: StreamInfo | None = None
        self._refused: RefusedError | None = None

    @property
    def info(self) -> StreamInfo:
        """What the stream is; there must be a server."""
        assert self._info is not None
        return self._info

    def check(self) -> None:
        """Raise what a server was refused for, if one was."""
        if self._refused is not None:
            raise self._refused

    def refuse(self, reason: RefusedError) -> None:
        """Note that a server does not fit."""
        self._refused = reason

    def join(self, url: str, welcome: Welcome) -> StreamInfo:
        """Take a server in, and return what it says of the stream.

        Raises the RefusedError that says how it differs, and MessageError for what no server says.
        """
        info = next((stream for stream in welcome.streams if stream.name == self._stream), None)
        if info is None:
            served = ", ".join(sorted(stream.name for stream in welcome.streams)) or "none"
            raise UnknownStreamError(f"{url} serves no stream {self._stream!r}; it serves: {served}. Pass stream=")
        if not info.data.isalnum():
            raise MessageError(f"a data fingerprint is made of letters and digits, not {info.data[:100]!r}")
        agreed = self._info
        if agreed is None:
            self._first, self._info = url, info
        elif info.data != agreed.data:
            if url == self._first:
                raise DataMismatchError(
                    f"{url} came back with other data as stream {self._stream!r}: {_data(info)}, and before "
                    f"{_data(agreed)}. Serve the earlier, or close() the RemoteDataset and begin anew"
                )
            raise DataMismatchError(
                f"{url} and {self._first} serve different data as stream {self._stream!r}: "
                f"{_data(info)} and {_data(agreed)}. Give both the same manifest"
            )
        elif info.recipe != agreed.recipe:
            names = sorted(info.facts.keys() | agreed.facts.keys())
            differing = [name for name in names if info.facts.get(name) != agreed.facts.get(name)]
            facts = ", ".join(f"{name}: {info.facts.get(name)} and {agreed.facts.get(name)}" for name in differing)
            if url == self._first:
                raise RecipeMismatchError(
                    f"{url} came back with another recipe for stream {self._stream!r}, now and before: "
                    f"{facts or 'unknown parts'}. Serve by the earlier, or close() the RemoteDataset and begin anew"
                )
            raise RecipeMismatchError(
                f"{url} and {self._first} make stream {self._stream!r} by different recipes "
                f"({facts or 'unknown parts'}). Give both the same configuration and versions"
            )
        return info


def _data(info: StreamInfo) -> str:
    return f"{info.samples:,} samples in {info.shards} shards (fingerprint {info.data[:12]})"
