"""The rows of an answer as samples: their names, their hashes, and those that failed."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shardfeed_server.reading import Located
from shardfeed_wire.errors import SampleError
from shardfeed_wire.messages import Batch, Failure, control_bytes

__all__ = ["KEYHASH_BYTES", "Rows", "sample_error"]

KEYHASH_BYTES: Final = 16
_TRACEBACK_CHARACTERS: Final = 2 << 10
_ALL_TRACEBACKS_CHARACTERS: Final = 256 << 10
_REASON_CHARACTERS: Final = 500
_NO_KEY: Final = "?"


class Rows:
    """Samples in the order asked for. ``failures`` are the bad ones, in the order in which they failed.

    Of 16,384 failures each keeps its shard, key and reason (500 characters), and the first 128 or so
    their tracebacks (2 KiB, their ends), so that a control message stays below its limit.
    """

    def __init__(self, located: Sequence[Located]) -> None:
        self._located = located
        self._keys = [_NO_KEY] * len(located)
        self._traceback_room = _ALL_TRACEBACKS_CHARACTERS
        self.failures: list[Failure] = []

    def name(self, row: int, key: str) -> None:
        """Note a row's key, as the shard has it: bytes that are not UTF-8 stand in it as surrogates."""
        self._keys[row] = key

    def name_all(self, keys: list[str]) -> None:
        """Note the keys of all rows."""
        self._keys = keys

    def title(self, row: int) -> str:
        """Return what an error calls a row's sample."""
        return f"sample {_utf8(self._keys[row])!r} of shard {self._located[row].shard_name}"

    def fail(self, row: int, error: SampleError) -> None:
        """Note that a row cannot be made."""
        if error.key is not None:
            self.name(row, error.key)
        end = (
            error.server_traceback[-min(_TRACEBACK_CHARACTERS, self._traceback_room) :] if self._traceback_room else ""
        )
        self._traceback_room -= len(end)
        failure = Failure(
            row=row,
            shard=self._located[row].shard_name,
            key=_utf8(self._keys[row]),
            field=error.field,
            reason=_utf8((error.reason or str(error))[:_REASON_CHARACTERS]),
            traceback=_utf8(end),
        )
        self.failures.append(failure)

    @property
    def first(self) -> tuple[str, str]:
        """Shard and key of row 0."""
        return self._located[0].shard_name, _utf8(self._keys[0])

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards of all rows, each once, in order of appearance."""
        return tuple(dict.fromkeys(sample.shard_name for sample in self._located))

    def tensors(self, batch: Batch, *, keys: bool) -> list[NDArray[Any]]:
        """Return the control message and the tensors before the columns; with ``keys`` also shards and keys."""
        control = np.frombuffer(control_bytes(batch), dtype=np.uint8)
        keys_utf8 = [key.encode("utf-8", "surrogateescape") for key in self._keys]
        names = {name: name.encode("utf-8", "surrogateescape") + b"\0" for name in self.shards}
        hashes = b"".join(
            blake2b(names[sample.shard_name] + key, digest_size=KEYHASH_BYTES).digest()
            for sample, key in zip(self._located, keys_utf8, strict=True)
        )
        tensors: list[NDArray[Any]] = [control, np.frombuffer(hashes, dtype=np.uint8).reshape(-1, KEYHASH_BYTES)]
        if keys:
            numbers = {name: number for number, name in enumerate(names)}
            tensors.append(np.array([numbers[sample.shard_name] for sample in self._located], dtype=np.uint32))
            tensors.append(np.frombuffer(b"".join(keys_utf8), dtype=np.uint8))
            tensors.append(np.cumsum([0, *map(len, keys_utf8)], dtype=np.int64))
        return tensors


def sample_error(located: Located, key: str | None, error: SampleError) -> SampleError:
    """Return the error with the sample's name in it."""
    reason = error.reason or str(error)
    shown = _utf8(error.key or key or _NO_KEY)
    field = f", field {error.field!r}" if error.field else ""
    return SampleError(
        f"sample {shown!r} of shard {located.shard_name}{field}: {reason}",
        shard=located.shard_name,
        key=shown,
        field=error.field,
        reason=reason,
        server_traceback=error.server_traceback,
    )


def _utf8(text: str) -> str:
    """Replace what MessagePack cannot hold: surrogates, which stand for bytes that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
