"""A manifest that was given, by path or URL: checked, and kept in the user's cache, where nobody writes over it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from shardfeed_wire.errors import ConfigError, ShardError
from webdataset.gopen import reader
from webdataset.indexing import cache_folder
from webdataset.manifest import Manifest
from webdataset.remote import identify, is_remote, open_ranges, public_url
from webdataset.wholefile import WholeFile

__all__ = ["load_manifest"]

_PATIENCE = 60.0
_PIECE = 1 << 20


def load_manifest(place: str | os.PathLike[str], folder: Path | None = None) -> Manifest:
    """Map a manifest into memory, from a path or a URL by way of the user's cache. Blocks.

    A URL is asked every time whether the manifest is still the one that was fetched. Of a file it is a copy that
    is mapped, where the cache can be written: whoever writes over a mapped file, as cp does, kills who maps it.

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
    """Map the copy of a file in the cache, and make it first where there is none; ``given`` where that cannot be."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, _hasher).hexdigest()
        entry = (folder or cache_folder()) / f"{digest}.ten"
        try:
            return Manifest.load(entry)
        except ConfigError:
            _copy(path, entry, digest)
        return Manifest.load(entry)
    except (OSError, ConfigError):
        return given


def _copy(path: Path, entry: Path, digest: str) -> None:
    """Copy a file. Raises ConfigError where it is not the one with the digest any more, OSError where it cannot be."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    hasher = _hasher()
    with path.open("rb") as stream, WholeFile(entry) as file:
        while data := stream.read(_PIECE):
            hasher.update(data)
            file.stream.write(data)
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
