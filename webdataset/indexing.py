"""From shards to a manifest: every shard scanned, in parallel, and the result remembered."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

import msgspec

from shardfeed_wire.errors import ConfigError, ShardError
from webdataset.foreign_index import foreign_index_of_file
from webdataset.manifest import BLOCK_BYTES, Excluded, Manifest
from webdataset.remote import is_remote, remote_root_of
from webdataset.remotescan import look_at_all, scan_all
from webdataset.tarindex import ShardIndex, index_shard

__all__ = ["Progress", "cache_folder", "cached_manifest", "index_shards", "root_of"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the shards done and their total."""

_CACHE_VERSION = 1
_MOST_NAMED = 50
# Starting processes takes about half of this; a small data set is done before.
_SECONDS_ALONE = 1.0


def index_shards(
    paths: Iterable[str | os.PathLike[str]],
    *,
    block_bytes: int = BLOCK_BYTES,
    exclude_bad: bool = False,
    progress: Progress | None = None,
    jobs: int | None = None,
    on_tar_index: Callable[[str], None] | None = None,
) -> Manifest:
    """Scan shards and make their manifest. Blocks until all are read.

    :param paths: local tar files, or URLs of servers that give byte ranges; their order is the
        order of the manifest.
    :param block_bytes: bytes at which a block is cut.
    :param exclude_bad: leave bad shards out, and note them in ``Manifest.excluded``.
    :param progress: called in this thread after each shard.
    :param jobs: processes that scan, default two a core; they are started after the first second.
        As with every use of multiprocessing, the program's main module must then be importable
        without side effects; with 1 none is started. Far shards are scanned by threads.
    :param on_tar_index: take DALI's or Energon's index of a shard where there is one, instead of
        scanning it, and call this with the shard's name. The manifest's fingerprint is then another.
    :raises ShardError: shards are missing, empty, truncated, compressed or not tars: all are named
        in one message; ``shard`` is set where it is only one.
    :raises ConfigError: no shard was given, one was given twice, or none is good.
    """
    if block_bytes < 1:
        raise ConfigError(f"block_bytes is {block_bytes}: it must be positive")
    given = _located([os.fspath(path) for path in paths])
    root, names = root_of(given)
    found: dict[int, ShardIndex] = {}
    bad: dict[int, str] = {}
    if is_remote(given[0]):
        results = scan_all(given, names, tar_indexes=on_tar_index is not None)
    else:
        results = _scan_all(root, names, jobs, tar_indexes=on_tar_index is not None)
    for done, (number, result, foreign) in enumerate(results, start=1):
        if foreign and on_tar_index is not None:
            on_tar_index(names[number])
        if isinstance(result, ShardIndex):
            found[number] = result
        else:
            bad[number] = result
        if progress is not None:
            progress(done, len(names))
    if bad and not exclude_bad:
        raise _all_bad(names, bad)
    if not found:
        raise ConfigError(f"none of the {len(names)} shards is good: {bad[min(bad)]}")
    return Manifest.from_indexes(
        [names[number] for number in sorted(found)],
        [found[number] for number in sorted(found)],
        root=root,
        block_bytes=block_bytes,
        excluded=[Excluded(names[number], bad[number]) for number in sorted(bad)],
    )


def cached_manifest(
    paths: Sequence[str | os.PathLike[str]],
    *,
    block_bytes: int = BLOCK_BYTES,
    exclude_bad: bool = False,
    progress: Progress | None = None,
    jobs: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Manifest:
    """Give the manifest of shards, from the user's cache where it is there, else by ``index_shards``.

    The cache goes by paths, sizes and modification times, and by the ETags of far shards. An entry
    that cannot be read is made again, and so is one when the cache cannot be written; processes may
    do so at the same time.

    :param folder: where manifests are kept; default: ``cache_folder()``.
    :returns: a manifest that is mapped from its file, where the cache can be written.
    :raises ShardError, ConfigError: as ``index_shards``.
    """
    given = _located([os.fspath(path) for path in paths])
    entry: Path | None = None
    try:
        where = Path(cache_folder() if folder is None else folder)
        entry = where / f"{_cache_key(given, block_bytes, exclude_bad)}.ten"
        return Manifest.load(entry)
    except ConfigError:
        # No cache, or not there, or not whole: the file is only a cache.
        pass
    manifest = index_shards(given, block_bytes=block_bytes, exclude_bad=exclude_bad, progress=progress, jobs=jobs)
    if entry is None:
        return manifest
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        manifest.save(entry)
        return Manifest.load(entry)
    except (OSError, ConfigError):
        return manifest


def cache_folder() -> Path:
    """Name the folder of the user's cached manifests; it need not exist. Raises ConfigError for who has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path.
    try:
        cache = Path(base) if base.startswith("/") else Path.home() / ".cache"
    except RuntimeError:  # a container's user that /etc/passwd does not know
        raise ConfigError("this user has no home; set HOME, or XDG_CACHE_HOME to a folder with room") from None
    return cache / "shardfeed" / "manifests"


def _located(paths: Sequence[str]) -> list[str]:
    far = [is_remote(path) for path in paths]
    if all(far):
        return list(paths)
    if any(far):
        near = paths[far.index(False)]
        raise ConfigError(f"some shards are URLs, and {near} is not; a data set lies under one URL, or in one folder")
    found, wrong = [], []
    for path in paths:
        try:
            found.append(_absolute(path))
        except ShardError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise ShardError("\n".join(str(error) for error in wrong))
    return found


def _scan_all(
    root: str, names: Sequence[str], jobs: int | None, *, tar_indexes: bool
) -> Iterator[tuple[int, ShardIndex | str, bool]]:
    """Yield shard numbers with their index or the reason why there is none, as they are done.

    Third comes whether it is of a tar index beside the shard.
    """
    # A process scans about 150,000 members a second. Threads are no way to more: measured with two,
    # passing the interpreter lock at every read made them twice as slow as one.
    jobs = min(2 * len(os.sched_getaffinity(0)), len(names)) if jobs is None else jobs
    patience = time.monotonic() + _SECONDS_ALONE
    number = 0
    while number < len(names) and (jobs <= 1 or time.monotonic() < patience):
        yield number, *_scan(root, names[number], tar_indexes)
        number += 1
    if number == len(names):
        return
    # Not fork: the caller may have threads, and a fork of those can deadlock.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        pending = {pool.submit(_scan, root, names[rest], tar_indexes): rest for rest in range(number, len(names))}
        try:
            for future in as_completed(pending):
                # Popped, so that an index is not held twice.
                yield pending.pop(future), *future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _scan(root: str, name: str, tar_indexes: bool) -> tuple[ShardIndex | str, bool]:
    path = str(Path(root) / name)
    try:
        foreign = foreign_index_of_file(path, name) if tar_indexes else None
        return foreign or index_shard(path, name), foreign is not None
    except ShardError as error:
        return str(error), False


def root_of(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Find the folder or URL that all shards lie under, and the shards' names in it.

    :param paths: absolute paths, or URLs. What may be secret in a URL is in neither root nor names.
    :raises ConfigError: none given, one given twice, or URLs of several servers.
    :raises ShardError: a path that no manifest can hold.
    """
    if not paths:
        raise ConfigError("no shards were given: name at least one")
    if is_remote(paths[0]):
        root, names = remote_root_of(paths)
    else:
        for path in paths:
            _check_text(path)
        root = os.path.commonpath([str(Path(path).parent) for path in paths])
        names = [Path(path).relative_to(root).as_posix() for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ConfigError(f"shards given twice: {', '.join(twice)}; name each once")
    return root, names


def _absolute(path: str) -> str:
    """Make a local shard's path absolute.

    :raises ShardError: it is a pipe or a URL of another kind, which cannot be read at random, or no UTF-8.
    """
    scheme = path.partition(":")[0]
    if "://" in path or scheme == "pipe" or path == "-":
        raise ShardError(
            f"shard {path}: this cannot be read at random; `shardfeed index --unpack DIR` copies it to a file",
            shard=path,
        )
    absolute = str(Path(path).absolute())
    _check_text(absolute)
    return absolute


def _check_text(path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = path.encode("utf-8", "backslashreplace").decode("utf-8")
        raise ShardError(
            f"shard {shown}: its path holds bytes that are not UTF-8, which no manifest can name; rename it",
            shard=shown,
        ) from error


def _all_bad(names: Sequence[str], bad: dict[int, str]) -> ShardError:
    reasons = [bad[number] for number in sorted(bad)]
    if len(reasons) == 1:
        return ShardError(f"{reasons[0]} (`--exclude-bad` leaves it out)", shard=names[min(bad)])
    listed = "\n  ".join(reasons[:_MOST_NAMED])
    more = [names[number] for number in sorted(bad)[_MOST_NAMED:]]
    others = f"\n  and without their reasons: {', '.join(more)}" if more else ""
    return ShardError(
        f"{len(bad)} of {len(names)} shards are bad (`--exclude-bad` leaves them out):\n  {listed}{others}"
    )


def _cache_key(paths: Sequence[str], block_bytes: int, exclude_bad: bool) -> str:
    if is_remote(paths[0]):
        seen = look_at_all(paths, remote_root_of(paths)[1])
        return _hash([_CACHE_VERSION, block_bytes, exclude_bad, seen])
    facts: list[tuple[str, int, int]] = []
    for path in paths:
        try:
            status = Path(path).stat()
            facts.append((path, status.st_size, status.st_mtime_ns))
        except OSError:
            # A shard that is not there is an error, or left out; either depends on its absence.
            facts.append((path, -1, -1))
    return _hash([_CACHE_VERSION, block_bytes, exclude_bad, facts])


def _hash(facts: list[object]) -> str:
    return hashlib.blake2b(msgspec.json.encode(facts), digest_size=16).hexdigest()
