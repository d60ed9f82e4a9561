"""Writing shards: samples to tar files, and a long run of samples to many of them."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from shardfeed_wire.errors import ConfigError, SampleError
from webdataset.encode import EncoderSpec, encode_utf8, make_encoder
from webdataset.indexing import root_of
from webdataset.keys import base_plus_ext, is_meta
from webdataset.manifest import BLOCK_BYTES, Manifest
from webdataset.pipestream import PipeFile
from webdataset.tarheader import BLOCK, padded
from webdataset.tarindex import ShardIndex, index_shard
from webdataset.wholefile import WholeFile

__all__ = ["ShardWriter", "TarWriter"]

_GZIP_ENDINGS = (".tgz", ".gz")


class TarWriter:
    """Writes dictionaries to a tar file.

    A named file appears under its name when it is closed, whole; until then, and for good if
    writing fails or the ``with`` block is left by an exception, there is only a temporary file or
    none. A stream given by the caller then has no tar's end mark, and readers call it truncated.

    The following adds the files ``a/b.output.png`` and ``a/b.png``::

        with TarWriter("out.tar") as writer:
            writer.write({"__key__": "a/b", "png": image, "output.png": image2})
    """

    def __init__(
        self,
        fileobj: str | os.PathLike[str] | int | IO[bytes],
        user: str = "bigdata",
        group: str = "bigdata",
        mode: int = 0o0444,
        compress: bool | None = None,
        encoder: EncoderSpec = True,
        keep_meta: bool = False,
        *,
        mtime: float | None = None,
    ) -> None:
        """Open a tar for writing.

        :param fileobj: a file's name; ``pipe:COMMAND``, whose standard input the tar is; or an open binary
            stream or descriptor, which stays open.
        :param user, group: names of the owners of the files in the tar; ``mode``: their permissions.
        :param compress: gzip; None: where the name ends with ``.tgz`` or ``.gz``.
        :param encoder: True: by extension, as the decoders would read it; False: values are bytes;
            a dict from extensions to functions; a function of the sample.
        :param keep_meta: also write entries whose name starts with ``_`` (never ``__key__``).
        :param mtime: time of the files in the tar, in seconds; None: when each is written. With one
            given, equal samples make equal bytes.
        :raises OSError: the file cannot be made.
        :raises ConfigError: the encoder makes no sense.
        """
        self._encoder = make_encoder(encoder)
        self._user, self._group, self._mode = user, group, mode
        self._keep_meta = keep_meta
        self._mtime = mtime
        self._last_key: str | None = None
        self._failed = False
        self._file: WholeFile | PipeFile | None = None
        self._owned: list[io.IOBase] = []
        if isinstance(fileobj, str | os.PathLike):
            name = os.fspath(fileobj)
            self._file = PipeFile(name) if name.startswith("pipe:") else WholeFile(name)
            stream: Any = self._file.stream
            if compress is None:
                compress = name.endswith(_GZIP_ENDINGS)
        elif isinstance(fileobj, int):
            stream = os.fdopen(fileobj, "wb", closefd=False)
            self._owned.append(stream)
        else:
            stream = fileobj
        if compress:
            stream = gzip.GzipFile("", "wb", fileobj=stream, mtime=mtime)
            self._owned.append(stream)
        self._stream: IO[bytes] | None = stream

    def write(self, obj: dict[str, Any]) -> int:
        """Write one sample: a file for each field, named ``__key__`` + ``.`` + field, in the fields' order by name.

        :param obj: ``__key__``, and fields: values that the encoder takes.
        :returns: the bytes of the fields, headers and padding left out.
        :raises SampleError: no key, no field, a key or field that would not be read back as it is, or
            a value no encoder takes; a ValueError that names them. Nothing was written then.
        :raises ValueError: the writer is closed.
        :raises OSError: the file cannot be written; the writer is of no more use.
        """
        parts, size = self._encode(obj)
        self._append(parts, obj["__key__"])
        return size

    def dwrite(self, key: str, **kw: Any) -> int:
        """Write a sample given as keyword arguments, ``_`` in their names meaning ``.``; see ``write``."""
        return self.write({"__key__": key, **{name.replace("_", "."): value for name, value in kw.items()}})

    def close(self) -> None:
        """Write the end mark, and give a named file its name, or end a command. Does nothing the second time.

        :raises OSError: the file cannot be written; none appears then. Or the command failed.
        """
        if self._failed:
            self._discard()
        if self._stream is None:
            return
        try:
            self._stream.write(bytes(2 * BLOCK))
            self._close_streams()
            if self._file is not None:
                self._file.commit()
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc_val: object, exc_tb: object) -> None:
        if exc_type is None:
            self.close()
        else:
            self._discard()

    def _encode(self, obj: dict[str, Any]) -> tuple[list[bytes], int]:
        """Make the bytes of a sample's members, and count those of its fields."""
        key = obj.get("__key__")
        if not isinstance(key, str):
            raise SampleError(f"a sample with the fields {sorted(obj, key=str)} has no __key__: give it one", key=None)
        if key == self._last_key:
            raise _bad(key, None, "the sample before had the same key, and the two would be read as one")
        for field in obj:
            if not isinstance(field, str):
                raise _bad(key, str(field), f"the field's name is {type(field).__name__}, not text")
        encoded = obj if self._encoder is None else self._encoder(dict(obj))
        parts: list[bytes] = []
        names: set[str] = set()
        total = 0
        for field in sorted(encoded):
            if field == "__key__" or (field.startswith("_") and not self._keep_meta):
                continue
            if field.lower() in names:
                raise _bad(key, field, "another field is named so but for case, and readers take names in lower case")
            names.add(field.lower())
            value = encoded[field]
            data = encode_utf8(key, field, value) if isinstance(value, str) else value
            if not isinstance(data, bytes | bytearray | memoryview):
                raise _bad(key, field, f"its value is {type(data).__name__}, not bytes: encode it, or give an encoder")
            data = bytes(data)
            size = len(data)
            parts += (self._header(key, field, size), data, bytes(padded(size) - size))
            total += size
        if not parts:
            raise _bad(key, None, "it has no fields, so that nothing of it would be written")
        return parts, total

    def _header(self, key: str, field: str, size: int) -> bytes:
        name = f"{key}.{field}"
        if base_plus_ext(name) != (key, field) or is_meta(name) or "\0" in name:
            reason = f"{name!r} would not be read back as this key and field: no dot may follow a key's last slash"
            raise _bad(key, field, reason)
        info = tarfile.TarInfo(name)
        info.size = size
        info.mode = self._mode
        info.uname, info.gname = self._user, self._group
        info.mtime = int(time.time() if self._mtime is None else self._mtime)
        try:
            # Plain ustar, and a pax header before it only where a name needs one.
            return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise _bad(key, field, f"{name!r} is no name that a tar can hold: {error.reason}") from error

    def _append(self, parts: list[bytes], key: str) -> None:
        if self._stream is None or self._failed:
            raise ValueError(f"sample {key}: the tar is closed, or an earlier write to it failed")
        try:
            self._stream.write(b"".join(parts))
        except BaseException:
            self._failed = True
            raise
        self._last_key = key

    def _close_streams(self) -> None:
        """Close what is ours, the last opened first; a stream of the caller's stays open."""
        self._stream = None
        while self._owned:
            self._owned.pop().close()

    def _discard(self) -> None:
        """Give up: close what is ours, and leave no file."""
        with suppress(OSError):
            # The disk may be full; the file goes away just below.
            self._close_streams()
        if self._file is not None:
            self._file.discard()


class ShardWriter:
    """Like TarWriter, but splits into several shards: a new one where the next sample would not fit.

    Each shard appears under its name when it is whole. Left by an exception, a ``with`` block
    leaves the finished shards, not the one begun, and no manifest.
    """

    def __init__(
        self,
        pattern: str,
        maxcount: int = 100000,
        maxsize: float = 3e9,
        post: Callable[[str], object] | None = None,
        *,
        manifest: str | os.PathLike[str] | None = None,
        block_bytes: int = BLOCK_BYTES,
        **kw: Any,
    ) -> None:
        """Begin; the first shard is made with the first sample.

        :param pattern: file names, such as ``train-%06d.tar``, or commands; shards are numbered from 0.
        :param maxcount: samples a shard, at most.
        :param maxsize: bytes a shard, at most, before compression; one larger sample has its own.
        :param post: called with the name of each finished shard.
        :param manifest: where to write the data set's manifest when all is done.
        :param block_bytes: see ``Manifest``.
        :param kw: other parameters of TarWriter.
        :raises ConfigError: the pattern has no number in it; or a manifest was asked for, and its folder is not there,
            or the shards are a command's or compressed.
        """
        try:
            different = pattern % 0 != pattern % 1
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"pattern {pattern!r}: {error}; write it with one number, as in train-%06d.tar"
            ) from error
        if not different:
            raise ConfigError(f"pattern {pattern!r} has no number in it; write it as in train-%06d.tar")
        if manifest is not None and pattern.startswith("pipe:"):
            raise ConfigError(
                "a manifest is made from shards that can be read again, and a command keeps them; leave it"
            )
        compress = kw.get("compress")
        if manifest is not None and (pattern.endswith(_GZIP_ENDINGS) if compress is None else compress):
            raise ConfigError(
                f"a manifest is of shards that can be read at random, and gzip's cannot: write {pattern!r} plain, "
                "or leave the manifest"
            )
        if manifest is not None and not Path(manifest).absolute().parent.is_dir():
            raise ConfigError(f"manifest {os.fspath(manifest)!r}: there is no folder to write it to; make it first")
        self._pattern = pattern
        self._maxcount = maxcount
        self._maxsize = maxsize
        self._post = post
        self._kw = kw
        self._manifest = None if manifest is None else Path(manifest)
        self._block_bytes = block_bytes
        self._finished: list[str] = []
        self._indexes: list[ShardIndex] = []
        self._writer: TarWriter | None = None
        self._count = 0
        self._bytes = 0

    def write(self, obj: dict[str, Any]) -> int:
        """Write one sample, to the next shard if this one is full; as ``TarWriter.write``."""
        if self._writer is None:
            self.next_stream()
        parts, size = self._open_writer()._encode(obj)
        length = sum(len(part) for part in parts)
        # The end mark is part of the shard.
        if self._count and (self._count >= self._maxcount or self._bytes + length + 2 * BLOCK > self._maxsize):
            self.next_stream()
        self._open_writer()._append(parts, obj["__key__"])
        self._count += 1
        self._bytes += length
        return size

    def next_stream(self) -> None:
        """Finish the shard at hand and begin the next."""
        self.finish()
        self._writer = TarWriter(self._pattern % len(self._finished), **self._kw)
        self._count = self._bytes = 0

    def finish(self) -> None:
        """Finish the shard at hand, if there is one, and call ``post`` with its name."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        writer.close()
        name = self._pattern % len(self._finished)
        self._finished.append(name)
        if self._manifest is not None:
            # Its headers were just written, so this reads memory.
            self._indexes.append(index_shard(name))
        if self._post is not None:
            self._post(name)

    def close(self) -> None:
        """Finish the last shard, and write the manifest where one was asked for."""
        self.finish()
        if self._manifest is not None and self._finished:
            root, names = root_of([str(Path(name).absolute()) for name in self._finished])
            Manifest.from_indexes(names, self._indexes, root=root, block_bytes=self._block_bytes).save(self._manifest)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *args: object, **kw: object) -> None:
        if args and args[0] is not None:
            if self._writer is not None:
                self._writer._discard()
                self._writer = None
        else:
            self.close()

    def _open_writer(self) -> TarWriter:
        assert self._writer is not None
        return self._writer


def _bad(key: str, field: str | None, reason: str) -> SampleError:
    where = f"sample {key}" if field is None else f"sample {key}, field {field}"
    return SampleError(f"{where}: {reason}", key=key, field=field, reason=reason)
