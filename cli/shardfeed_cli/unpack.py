"""Shards that cannot be read at random, as plain tars in a folder: compressed, piped, behind URLs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shardfeed_wire.errors import ConfigError, ShardError
from webdataset.gopen import reader
from webdataset.remote import is_remote, public_url
from webdataset.tarheader import what_it_is_instead
from webdataset.wholefile import WholeFile

__all__ = ["Unpacked", "unpack_shards"]

_PIPE = "pipe:"
_PIECE = 1 << 20
_ENDINGS = {".tgz": ".tar", ".tbz2": ".tar", ".txz": ".tar", ".gz": "", ".bz2": "", ".xz": "", ".zst": ""}


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The tars written, in the order of the shards given, and why the others were not, by their names."""

    paths: list[str]
    failures: dict[str, str]

    def check(self, *, exclude_bad: bool) -> None:
        """Raise ShardError that names every failure, unless they are to be left out."""
        if self.failures and not exclude_bad:
            listed = "\n  ".join(f"shard {name}: {reason}" for name, reason in self.failures.items())
            count = f"{len(self.failures)} of {len(self.failures) + len(self.paths)} shards"
            raise ShardError(f"{count} cannot be unpacked (`--exclude-bad` leaves them out):\n  {listed}")


def unpack_shards(shards: Sequence[str], folder: Path, progress: Callable[[int, int], None]) -> Unpacked:
    """Write each shard to ``folder`` as a plain tar, several at once, in place of a file that has its name there.

    Shards are paths, URLs of HTTP servers and object stores, or ``pipe:`` and a shell command; gzip, bzip2,
    xz and zstd are undone. Blocks until all are done; ``progress`` gets how many are, and all. Raises
    ConfigError where two shards would get one name, or the folder cannot be made.
    """
    names = _names(shards)
    targets = [folder / name for name in names]
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--unpack {folder}: {error.strerror or error}; name another folder") from error
    failures: dict[int, str] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        pending = {
            pool.submit(_unpack, shard, target): number
            for number, (shard, target) in enumerate(zip(shards, targets, strict=True))
        }
        for done, future in enumerate(as_completed(pending), start=1):
            if (reason := future.result()) is not None:
                failures[pending[future]] = reason
            progress(done, len(shards))
    paths = [str(target) for number, target in enumerate(targets) if number not in failures]
    return Unpacked(paths, {public_url(shards[number]): failures[number] for number in sorted(failures)})


def _names(shards: Sequence[str]) -> list[str]:
    """Name each shard's file: its path below the folder that all have in common, less the compression's ending."""
    places = [_place(number, shard) for number, shard in enumerate(shards)]
    root = os.path.commonpath([str(place.parent) for place in places]) if places else "/"
    names = [_plain_name(place.relative_to(root)) for place in places]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        both = ", ".join(shard for shard, name in zip(shards, names, strict=True) if name == twice)
        raise ConfigError(f"--unpack: {both} would both become {twice}; unpack them to folders of their own")
    return names


def _place(number: int, shard: str) -> Path:
    if shard.startswith(_PIPE):
        return Path(f"/pipe/shard-{number:06d}.tar")
    if "://" in shard:
        url = urlsplit(shard)
        return Path(f"/{url.netloc}/{url.path}")
    return Path(shard).absolute()


def _plain_name(path: Path) -> str:
    ending = _ENDINGS.get(path.suffix.lower())
    name = path.as_posix() if ending is None else path.as_posix()[: -len(path.suffix)] + ending
    return name if name.lower().endswith(".tar") else f"{name}.tar"


def _unpack(shard: str, target: Path) -> str | None:
    """Write one shard, whole or not at all; return why it failed, if it did."""
    try:
        with WholeFile(target) as file, _opened(shard) as stream:
            shutil.copyfileobj(_decompressed(stream), file.stream, _PIECE)
    except OSError as error:
        return str(error.strerror or error)
    except (EOFError, zlib.error, lzma.LZMAError, ConfigError, ShardError) as error:
        # A stream names its URL, signature and all, and whoever reports this names the shard.
        return str(error).removeprefix(f"shard {shard}: ").replace(shard, public_url(shard)) or type(error).__name__
    return None


@contextmanager
def _opened(shard: str) -> Iterator[io.BufferedReader]:
    if shard.startswith(_PIPE):
        with subprocess.Popen(shard.removeprefix(_PIPE), shell=True, stdout=subprocess.PIPE) as process:
            assert isinstance(process.stdout, io.BufferedReader)
            yield process.stdout
            if process.wait():
                raise ShardError(f"its command ended with status {process.returncode}")
    elif is_remote(shard):
        stream: Any = reader(shard)
        with stream:
            yield stream
    elif "://" in shard:
        scheme = shard.partition("://")[0]
        raise ShardError(f"{scheme}:// is not read here; give it as 'pipe:COMMAND' with a command that prints it")
    else:
        with Path(shard).open("rb") as file:
            yield file


def _decompressed(stream: io.BufferedReader) -> Any:
    match what_it_is_instead(stream.peek(8)[:8]):
        case "gzip-compressed":
            return gzip.GzipFile(fileobj=stream, mode="rb")
        case "bzip2-compressed":
            return bz2.BZ2File(stream)
        case "xz-compressed":
            return lzma.LZMAFile(stream)
        case "zstd-compressed":
            return _Zstd(stream)
        case _:
            return stream


class _Zstd:
    """A zstd stream undone, by Python 3.14's own module or the package zstandard."""

    def __init__(self, stream: io.BufferedReader) -> None:
        try:
            module = import_module("compression.zstd")
            self._stream: Any = module.ZstdFile(stream)
        except ImportError:
            try:
                module = import_module("zstandard")
            except ImportError:
                message = "it is zstd-compressed, which needs the package zstandard: pip install zstandard"
                raise ShardError(message) from None
            self._stream = module.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
        self._error: type[Exception] = module.ZstdError

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except self._error as error:
            raise ShardError(f"it is zstd-compressed, and cannot be unpacked: {error}") from error
        return data
