"""A manifest that was given, by path or URL: checked, and kept in the user's cache, where nobody writes over it."""

from __future__ import annotations

import hashlib
import logging
import os
import weakref
from pathlib import Path
from typing import Any, BinaryIO

from shardfeed_wire.errors import ConfigError, ShardError
from webdataset.gopen import reader
from webdataset.indexing import cache_folder
from webdataset.manifest import Manifest
from webdataset.remote import identify, is_remote, open_ranges, public_url
from webdataset.wholefile import WholeFile

__all__ = ["load_manifest"]

_PATIENCE = 60.0
_PIECE = 1 << 20
_MOST_IN_MEMORY = 1 << 30
"""Bytes of a manifest that are kept in memory where no disk takes them: those of some 60 million samples."""
_ADVICE = "set XDG_CACHE_HOME to a folder with room"

log = logging.getLogger("webdataset")


def load_manifest(place: str | os.PathLike[str], folder: Path | None = None) -> Manifest:
    """Map a manifest into memory, from a path or a URL by way of the user's cache. Blocks.

    A URL is asked every time whether the manifest is still the one that was fetched. Of a file it is a copy that
    is mapped, for whoever writes over a mapped file, as cp does, kills who maps it: a copy in the cache, or one in
    memory of up to 1 GiB where the cache cannot be written. A larger one is then mapped where it lies, with a warning.

    :param folder: where it is kept; default: ``cache_folder()``.
    :raises ConfigError: there is none, or it is not a whole manifest of this version.
    """
    url = os.fspath(place)
    if not is_remote(url):
        return _kept(Path(url), Manifest.load(url), folder)
    ranges = open_ranges(url, 1)
    try:
        seen = identify(ranges, url, "manifest", patience=_PATIENCE, insist=False)
        facts = repr((public_url(url), seen.size, seen.etag, seen.modified_ns))
        entry = (folder or cache_folder()) / f"{hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()}.ten"
        try:
            return Manifest.load(entry)
        except ConfigError:
            _fetch(url, entry)
        return Manifest.load(entry)
    except ShardError as error:
        raise ConfigError(
            f"manifest {public_url(url)} cannot be had: {str(error).replace(url, public_url(url))}"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"what lies at {public_url(url)} is no use: {error}") from error
    except OSError as error:
        reason = f"cannot be kept: {error.strerror or error}; set XDG_CACHE_HOME to a folder with room"
        raise ConfigError(f"manifest {public_url(url)} {reason}") from error
    finally:
        ranges.close()


def _kept(path: Path, given: Manifest, folder: Path | None) -> Manifest:
    """Map a copy of a file, in the cache or else in memory; ``given`` where there can be none."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, _hasher).hexdigest()
        try:
            return _in_cache(path, digest, folder)
        except (OSError, ConfigError) as error:
            manifest = _in_memory(path, digest)
            log.warning(
                "manifest %s is kept in memory, as the cache cannot be written: %s; %s", path, str(error), _ADVICE
            )
            return manifest
    except (OSError, ConfigError) as error:
        log.warning("manifest %s may not be written over while it is used: no copy can be kept: %s", path, str(error))
        return given


def _in_cache(path: Path, digest: str, folder: Path | None) -> Manifest:
    """Map the copy of a file in the cache, and make it first where there is none. Raises what `_copy` raises."""
    entry = (folder or cache_folder()) / f"{digest}.ten"
    try:
        return Manifest.load(entry)
    except ConfigError:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with WholeFile(entry) as file:
            _copy(path, file.stream, digest)
    return Manifest.load(entry)


def _in_memory(path: Path, digest: str) -> Manifest:
    """Map a copy in memory, which other processes share by a path that lasts as long as this one keeps the manifest.

    Raises ConfigError where it is too large, and what `_copy` raises.
    """
    if path.stat().st_size > _MOST_IN_MEMORY:
        raise ConfigError(f"the cache cannot be written, and it is larger than {_MOST_IN_MEMORY >> 20} MiB; {_ADVICE}")
    held = os.memfd_create("shardfeed-manifest", os.MFD_CLOEXEC)
    try:
        with os.fdopen(held, "wb", closefd=False) as memory:
            _copy(path, memory, digest)
        manifest = Manifest.load(f"/proc/{os.getpid()}/fd/{held}")
    except BaseException:
        os.close(held)
        raise
    weakref.finalize(manifest, os.close, held)
    return manifest


def _copy(path: Path, target: BinaryIO, digest: str) -> None:
    """Copy a file. Raises ConfigError where it is not the one with the digest any more, OSError where it cannot be."""
    hasher = _hasher()
    with path.open("rb") as stream:
        while data := stream.read(_PIECE):
            hasher.update(data)
            target.write(data)
        if hasher.hexdigest() != digest:
            raise ConfigError(f"manifest {path} was changed while it was read; start again")


def _hasher() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _fetch(url: str, entry: Path) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    stream: Any = reader(url)
    with stream, WholeFile(entry) as file:
        while data := stream.read(_PIECE):
            file.stream.write(data)
