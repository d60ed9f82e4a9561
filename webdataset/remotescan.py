"""Many far shards at once: looked at, or scanned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from shardfeed_wire.errors import ShardError
from webdataset.foreign_index import foreign_index_of_object
from webdataset.remote import Ranges, identify, open_ranges, public_url
from webdataset.remoteindex import index_remote_shard
from webdataset.tarindex import ShardIndex

__all__ = ["look_at_all", "scan_all"]

_AT_A_TIME = 32
_PATIENCE = 60.0


def scan_all(
    urls: Sequence[str], names: Sequence[str], *, tar_indexes: bool
) -> Iterator[tuple[int, ShardIndex | str, bool]]:
    """Yield shard numbers with their index or the reason why there is none, as they are done. Blocks.

    Third comes whether it is of a tar index beside the shard.

    :raises ConfigError: shards of this kind need an extra.
    """
    ranges = open_ranges(urls[0], _AT_A_TIME)
    try:
        with ThreadPoolExecutor(min(_AT_A_TIME, len(urls)), thread_name_prefix="shardfeed-index") as pool:
            pending = {
                pool.submit(_scan, ranges, url, name, tar_indexes): number
                for number, (url, name) in enumerate(zip(urls, names, strict=True))
            }
            try:
                for future in as_completed(pending):
                    # Popped, so that an index is not held twice.
                    yield pending.pop(future), *future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        ranges.close()


def look_at_all(urls: Sequence[str], names: Sequence[str]) -> list[tuple[str, int, str, int]]:
    """Return each shard's URL without secrets, size, ETag and time; of one that cannot be read, -1. Blocks.

    :raises ConfigError: shards of this kind need an extra.
    """
    ranges = open_ranges(urls[0], _AT_A_TIME)

    def look(url: str, name: str) -> tuple[str, int, str, int]:
        try:
            seen = identify(ranges, url, name, patience=_PATIENCE)
            return public_url(url), seen.size, seen.etag, seen.modified_ns
        except ShardError:
            return public_url(url), -1, "", -1

    try:
        with ThreadPoolExecutor(min(_AT_A_TIME, len(urls)), thread_name_prefix="shardfeed-index") as pool:
            return list(pool.map(look, urls, names))
    finally:
        ranges.close()


def _scan(ranges: Ranges, url: str, name: str, tar_indexes: bool) -> tuple[ShardIndex | str, bool]:
    try:
        foreign = foreign_index_of_object(ranges, url, name, patience=_PATIENCE) if tar_indexes else None
        return foreign or index_remote_shard(ranges, url, name, patience=_PATIENCE), foreign is not None
    except ShardError as error:
        return str(error), False
