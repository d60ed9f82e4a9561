"""Opening shards by URL, as streams that fail loudly: a broken transfer never looks like the end of a file."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from shardfeed_wire.errors import ConfigError, ShardError
from webdataset.httpstream import HttpStream
from webdataset.objectstream import ObjectStream
from webdataset.pipestream import PipeStream
from webdataset.tarsource import ReadsBytes

__all__ = ["Opener", "make_opener", "reader", "schemes"]

Opener: TypeAlias = Callable[[str], ReadsBytes]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)")
_BUFFER = 256 << 10


def reader(url: str) -> ReadsBytes:
    """Open a shard for reading in order. Blocks until it begins to come.

    :param url: a path, ``file:PATH``, ``http://``, ``https://``, ``pipe:COMMAND``, ``-`` for the
        standard input, ``s3://``, ``gs://``, ``az://``, or a scheme in ``schemes``.
    :returns: a binary stream, to be closed. Reading it blocks, and raises ShardError, naming the
        url and what happened, where the transfer breaks.
    :raises ShardError: it cannot be opened.
    :raises ConfigError: the scheme is unknown, or needs an extra that is not installed.
    """
    if url == "-":
        return open(0, "rb", closefd=False)
    match = _SCHEME.match(url)
    if match is None:
        return _open_file(url)
    opener = schemes.get(match[0].lower())
    if opener is None:
        raise ConfigError(f"shard {url}: unknown scheme {match[0]!r}; known are {', '.join(schemes)}")
    return opener(url)


def make_opener(opener: Opener | str) -> Opener:
    """Turn an opener as users give it into a function: a command's ``{url}`` becomes the url, quoted for the shell.

    :raises ConfigError: a command without ``{url}``.
    """
    if not isinstance(opener, str):
        return opener
    if "{url}" not in opener:
        raise ConfigError(f"opener {opener!r} has no {{url}} in it, so it would read the same for every shard")
    return partial(_open_command, opener)


def _open_file(url: str) -> ReadsBytes:
    path = unquote(urlsplit(url).path) if url.startswith("file:") else url
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise ShardError(f"shard {url}: cannot open it: {error.strerror}", shard=url) from error


def _open_http(url: str) -> ReadsBytes:
    return _buffered(HttpStream(url))


def _open_command(command: str, url: str) -> ReadsBytes:
    return _buffered(PipeStream(command.replace("{url}", shlex.quote(url)), url))


def _open_pipe(url: str) -> ReadsBytes:
    return _buffered(PipeStream(url.partition(":")[2], url))


def _open_object(url: str) -> ReadsBytes:
    return _buffered(ObjectStream(url))


def _buffered(stream: io.RawIOBase) -> ReadsBytes:
    return io.BufferedReader(stream, _BUFFER)


schemes: dict[str, Opener] = {
    "file": _open_file,
    "http": _open_http,
    "https": _open_http,
    "pipe": _open_pipe,
    "s3": _open_object,
    "gs": _open_object,
    "az": _open_object,
}
"""``schemes[scheme]`` opens a url. Add schemes of your own as you like."""
