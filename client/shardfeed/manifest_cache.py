"""What a client needs of a manifest: block sizes, blocks a shard, shard names. Asked for once and kept on its disk."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardfeed_wire import tenbin
from shardfeed_wire.errors import MessageError, TenbinError
from shardfeed_wire.messages import StreamInfo

__all__ = ["ClientManifest", "cached_manifest", "keep_manifest", "parse_manifest"]


@dataclass(frozen=True, slots=True, eq=False)
class ClientManifest:
    """The samples of each block (uint16), the shard of each block (uint32), and the shards' names."""

    block_sizes: NDArray[np.uint16]
    block_shard: NDArray[np.uint32]
    shards: tuple[str, ...]

    def samples_before(self, block: int) -> int:
        """Return how many samples of the block's shard come before the block."""
        first = int(np.searchsorted(self.block_shard, self.block_shard[block]))
        return int(self.block_sizes[first:block].sum(dtype=np.int64))


def parse_manifest(tensors: list[NDArray[Any]], info: StreamInfo) -> ClientManifest:
    """Check and return a stream's manifest as it came.

    Raises MessageError where its parts do not fit each other, or what the server said of the stream.
    """
    if len(tensors) < 4:
        raise MessageError(f"a manifest has 4 tensors, not {len(tensors)}")
    sizes, shard_blocks, text, offsets = tensors[:4]
    fits = (
        [part.dtype.name for part in tensors[:4]] == ["uint16", "uint32", "uint8", "int64"]
        and {sizes.ndim, shard_blocks.ndim, text.ndim, offsets.ndim} == {1}
        and int(shard_blocks.sum(dtype=np.int64)) == len(sizes)
        and int(sizes.sum(dtype=np.int64)) == info.samples
        and (len(sizes), len(shard_blocks)) == (info.blocks, info.shards)
        and len(offsets) == len(shard_blocks) + 1
        and bool((offsets[1:] >= offsets[:-1]).all())
        and 0 <= int(offsets[0]) <= int(offsets[-1]) <= len(text)
    )
    if not fits:
        raise MessageError("the manifest's tensors do not fit each other, or what the server says of the stream")
    raw, ends = text.tobytes(), offsets.tolist()
    names = tuple(raw[ends[n] : ends[n + 1]].decode("utf-8", "surrogateescape") for n in range(len(shard_blocks)))
    shards = np.repeat(np.arange(len(shard_blocks), dtype=np.uint32), shard_blocks)
    return ClientManifest(sizes.copy(), shards, names)


def _path(fingerprint: str) -> Path:
    assert fingerprint.isalnum(), "`Agreement` sees to it"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "shardfeed" / "client" / f"{fingerprint}.ten"


def cached_manifest(info: StreamInfo) -> ClientManifest | None:
    """Return the manifest kept for a stream's data fingerprint, or None. A damaged file counts as none."""
    try:
        return parse_manifest(tenbin.decode_buffer(_path(info.data).read_bytes()), info)
    except (OSError, TenbinError, MessageError, RuntimeError):
        return None


def keep_manifest(fingerprint: str, tensors: list[NDArray[Any]]) -> None:
    """Keep a manifest for the next time; where the disk does not allow it, do without."""
    try:
        path = _path(fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", ignore_cleanup_errors=True) as folder:
            whole = Path(folder) / path.name
            whole.write_bytes(tenbin.encode_buffer(tensors[:4]))
            whole.replace(path)
    except (OSError, RuntimeError):
        return
