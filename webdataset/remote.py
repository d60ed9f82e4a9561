"""Shards on other machines: their URLs, what identifies one, and byte ranges that arrive whole or raise."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from shardfeed_wire.errors import ConfigError, ShardError

__all__ = [
    "OBJECT_SCHEMES",
    "AbsentError",
    "Ranges",
    "RemoteIdentity",
    "TransientError",
    "changed",
    "fault",
    "identify",
    "is_object",
    "is_remote",
    "join_url",
    "object_place",
    "open_ranges",
    "public_url",
    "read_range",
    "remote_root_of",
]

HTTP_SCHEMES = ("http", "https")
OBJECT_SCHEMES = ("s3", "gs", "az")

_REMOTE = re.compile(rf"(?:{'|'.join((*HTTP_SCHEMES, *OBJECT_SCHEMES))})://", re.IGNORECASE)
_ATTEMPTS = 8
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_AGAIN = "make the manifest again with `shardfeed index`"
_TAKEN_AT_ONCE = 64 << 20
"""Bytes of memory for a range before it comes, at most: what claims how long it is may lie."""

T = TypeVar("T")


class AbsentError(ShardError):
    """Nothing is there, or nothing that may be seen."""


class TransientError(Exception):
    """A failure that may be gone in a moment. Stays inside: whoever retries maps it to ShardError in the end."""


@dataclass(frozen=True, slots=True)
class RemoteIdentity:
    """What an object was when it was first seen.

    ``size`` in bytes; ``etag`` as the server writes it, or empty; ``modified_ns`` since 1970, or 0.
    """

    size: int
    etag: str
    modified_ns: int

    def differs_from(self, other: RemoteIdentity) -> str:
        """Say how another look at the object shows that it changed, or return an empty text."""
        if self.size != other.size:
            return f"it has {other.size} bytes, not {self.size}"
        if self.etag and other.etag:
            # Whether a validator is weak may depend on how the server answers.
            same = self.etag.removeprefix("W/") == other.etag.removeprefix("W/")
            return "" if same else f"its ETag is {other.etag}, not {self.etag}"
        if self.modified_ns and other.modified_ns and self.modified_ns != other.modified_ns:
            return "it was modified since"
        return ""


class Ranges(Protocol):
    """A kind of server that objects are read from by byte range; safe for several threads."""

    def identify(self, url: str, timeout: float, *, ranges: bool) -> RemoteIdentity:
        """Look at an object once. Blocks.

        :param ranges: insist that byte ranges of it can be had.
        :raises TransientError: it may work in a moment.
        :raises AbsentError: there is none. :raises ShardError: it cannot be read.
        """

    def pieces(self, url: str, start: int, end: int, identity: RemoteIdentity, timeout: float) -> Iterator[bytes]:
        """Ask once for the bytes from ``start`` to before ``end``, and yield them as they come. Blocks.

        :raises TransientError: the transfer broke, and may be resumed where it did.
        :raises ShardError: it cannot be read, or is not the object of ``identity``; none of its bytes was yielded.
        """

    def close(self) -> None:
        """Close what is open; the next use opens it anew."""


def is_remote(path: str) -> bool:
    """Say whether a shard's path is a URL that is read by byte ranges."""
    return _REMOTE.match(path) is not None


def open_ranges(url: str, connections: int) -> Ranges:
    """Make what reads the objects of a URL's kind, with so many idle connections kept.

    :raises ConfigError: the kind needs an extra that is not installed.
    """
    if urlsplit(url).scheme.lower() in OBJECT_SCHEMES:
        from webdataset.objectrange import ObjectRanges  # needs an extra

        return ObjectRanges(url)
    from webdataset.httprange import HttpRanges

    return HttpRanges(connections)


def public_url(url: str) -> str:
    """Leave out of a URL what may be secret: user, password, query, fragment. Other text comes back as it is."""
    if not is_remote(url):
        return url
    scheme, netloc, path, _, _ = _split(url)
    return f"{scheme}://{netloc.rpartition('@')[2]}{path}"


def join_url(root: str, name: str) -> str:
    """Make the URL of a shard from the data set's root and the shard's name there."""
    plain = root.rstrip("/")
    return f"{plain}/{name if is_object(root) else quote(name, safe=_SAFE)}"


def remote_root_of(urls: Sequence[str]) -> tuple[str, list[str]]:
    """Find the URL that all shards lie under, and the shards' names there, as a copy on disk would have them.

    Neither holds a user, a password or a query.

    :raises ConfigError: the shards lie on several servers, or one has no path.
    """
    places = [_split(public_url(url)) for url in urls]
    servers = sorted({f"{scheme.lower()}://{netloc}" for scheme, netloc, *_ in places})
    if len(servers) > 1:
        raise ConfigError(
            f"shards lie on several servers: {', '.join(servers[:5])}; a data set lies under one URL, or in one folder"
        )
    paths = [path if is_object(url) else unquote(path) for url, (_, _, path, _, _) in zip(urls, places, strict=True)]
    for url, path in zip(urls, paths, strict=True):
        if path.endswith("/") or path in ("", "/"):
            raise ConfigError(f"shard {public_url(url)}: the URL names no file; write one such as {servers[0]}/a.tar")
    folders = [PurePosixPath(path).parent.parts for path in paths]
    common: list[str] = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    below = "/".join(common).replace("//", "/")
    names = [PurePosixPath(path).relative_to(PurePosixPath(*common)).as_posix() for path in paths]
    root = servers[0] + (below if is_object(urls[0]) else quote(below, safe=_SAFE)).rstrip("/")
    return root, names


def identify(ranges: Ranges, url: str, name: str, *, patience: float, insist: bool = True) -> RemoteIdentity:
    """Look at an object, again where that fails for a moment. Blocks, at most about ``patience`` seconds.

    :param insist: on byte ranges.
    :raises ShardError: it cannot be had, or not by ranges; the message names ``name``, url and status.
    """
    return _persist(lambda timeout: ranges.identify(url, timeout, ranges=insist), url, name, patience)


def read_range(
    ranges: Ranges, url: str, name: str, identity: RemoteIdentity, start: int, length: int, *, patience: float
) -> bytearray:
    """Read ``length`` bytes from ``start``; a transfer that breaks is resumed where it did. Blocks.

    :param patience: seconds for all of it, retries and the pauses between them included.
    :returns: all of the bytes.
    :raises ShardError: it is not the object of ``identity`` any more, or cannot be read; the message
        names ``name``, url and status.
    """
    data, have = bytearray(min(length, _TAKEN_AT_ONCE)), 0  # it grows where more than that comes

    def go_on(timeout: float) -> bytearray:
        nonlocal have
        deadline = time.monotonic() + timeout
        for piece in ranges.pieces(url, start + have, start + length, identity, timeout):
            if have + len(piece) > length:
                raise ShardError(f"the server sent more than the {length} bytes that were asked for")
            data[have : have + len(piece)] = piece
            have += len(piece)
            if time.monotonic() > deadline and have < length:
                raise TransientError(f"it comes too slowly: {have} of {length} bytes")
        if have != length:
            raise TransientError(f"it ended after {have} of {length} bytes")
        return data

    return _persist(go_on, url, name, patience, lambda: have)


def _persist(
    action: Callable[[float], T], url: str, name: str, patience: float, progress: Callable[[], int] = lambda: 0
) -> T:
    """Do something that may fail for a moment, until it works, or too often in a row without progress, or too late."""
    deadline = time.monotonic() + patience
    failures = 0
    while True:
        before = progress()
        try:
            return action(max(0.1, deadline - time.monotonic()))
        except TransientError as error:
            failures = 1 if progress() > before else failures + 1
            pause = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
            if failures >= _ATTEMPTS or time.monotonic() + pause >= deadline:
                tried = f"tried {failures} times in a row" if failures > 1 else f"within {patience:g} s"
                raise fault(name, url, f"{error} ({tried}); look at that server, then try again") from error
            time.sleep(pause)
        except AbsentError as error:
            raise AbsentError(f"shard {name}: {public_url(url)}: {error}", shard=name) from error
        except ShardError as error:
            raise fault(name, url, str(error)) from error


def fault(name: str, url: str, reason: str) -> ShardError:
    """Make the error that names a shard, its URL without secrets, and what is wrong."""
    where = public_url(url)
    return ShardError(f"shard {name}: {where}: {reason}" if where != name else f"shard {name}: {reason}", shard=name)


def changed(how: str) -> ShardError:
    """Make the error for an object that is not the one it was; the caller's caller adds its name."""
    return ShardError(f"it changed since it was opened: {how}; {_AGAIN}")


_SAFE = "/!$&'()*+,;=:@~"


def is_object(url: str) -> bool:
    """Say whether a URL is of an object store, where every character of a key counts."""
    return urlsplit(url).scheme.lower() in OBJECT_SCHEMES


def _split(url: str) -> tuple[str, str, str, str, str]:
    """Split a URL; a key of an object store may hold any character, so there nothing is a query."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() in OBJECT_SCHEMES:
        bucket, slash, key = rest.partition("/")
        return scheme.lower(), bucket, slash + key, "", ""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc, parts.path, parts.query, parts.fragment


def object_place(url: str) -> tuple[str, str]:
    """Split the URL of an object into its bucket's URL and its key."""
    scheme, bucket, path, _, _ = _split(url)
    return urlunsplit((scheme, bucket, "", "", "")), path.lstrip("/")
