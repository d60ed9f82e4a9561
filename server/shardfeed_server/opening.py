"""A stream's manifest, given, cached or made now, and what reads its shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from shardfeed_server.config import ServerConfig, StreamConfig
from shardfeed_wire.errors import ConfigError
from webdataset.indexing import cached_manifest, root_of
from webdataset.manifest import Manifest
from webdataset.remote import is_remote, public_url
from webdataset.remoteblocks import PATIENCE
from webdataset.remotemanifest import load_manifest
from webdataset.shards import ShardReader

__all__ = ["open_manifest", "share_cache"]


def open_manifest(
    stream: StreamConfig, progress: Callable[[int, int], None] | None = None
) -> tuple[Manifest, ShardReader]:
    """Return a stream's manifest, given, cached or made now, and a reader of its shards. Blocks.

    ``progress`` gets the shards scanned, and all. Raises ShardError that names every bad shard, and
    ConfigError where there is no shard or the manifest given is of other ones.
    """
    paths = stream.shard_paths()
    far = bool(paths) and is_remote(paths[0])
    if stream.manifest is None:
        manifest = cached_manifest(
            paths, block_bytes=stream.block_bytes, exclude_bad=stream.exclude_bad, progress=progress
        )
        return manifest, ShardReader(manifest, urls=_urls(paths) if far else None)
    manifest = load_manifest(stream.manifest)
    root, names = root_of(paths if far else [str(Path(path).absolute()) for path in paths])
    known = {*manifest.names, *(left_out.name for left_out in manifest.excluded)}
    unknown = sorted(set(names) - known if stream.partial else set(names) ^ known)
    if unknown:
        raise ConfigError(
            f"the manifest {public_url(stream.manifest)} is of other shards than those below {root}: "
            f"{', '.join(unknown[:5])}; make it again with `shardfeed index`"
        )
    return manifest, ShardReader(manifest, root, urls=_urls(paths) if far else None, partial=stream.partial)


def share_cache(readers: Sequence[ShardReader], config: ServerConfig) -> None:
    """Divide the cache's bytes among the streams whose shards are far: alike, but to none more than its shards have.

    Raises ConfigError where the cache's folder cannot be used.
    """
    far = sorted((reader.far for reader in readers if reader.far is not None), key=lambda blocks: blocks.most_bytes)
    left = config.cache_bytes
    for waiting, blocks in zip(range(len(far), 0, -1), far, strict=True):
        budget = min(left // waiting, blocks.most_bytes)
        folder = None if config.cache_dir is None else Path(config.cache_dir)
        # A worker that stays at one row for longer is taken for hung.
        blocks.set_cache(budget, folder, patience=min(PATIENCE, config.sample_timeout / 2))
        left -= budget


def _urls(paths: Sequence[str]) -> dict[str, str]:
    """Return what to ask for by the shards' names: a URL may be signed, and a manifest knows no signatures."""
    return dict(zip(root_of(paths)[1], paths, strict=True))
