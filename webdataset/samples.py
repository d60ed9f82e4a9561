"""From members to samples: ``tariterator``, and its short cut for a sample whose bytes are at hand."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, TypeAlias

from shardfeed_wire.errors import ConfigError, SampleError, ShardError
from webdataset.decode import Decoder, DecoderSpec, container_decoder, make_decoder
from webdataset.grouping import group_members
from webdataset.keys import Keys, base_plus_ext, is_meta
from webdataset.plainsample import read_plain_sample
from webdataset.tarsource import BytesSource, ReadsBytes, Source, StreamSource
from webdataset.tarwalk import read_member, walk

__all__ = ["Errors", "Keys", "broken", "check_errors", "iterate_samples", "read_sample", "report", "tariterator"]

Errors: TypeAlias = bool | Literal["warn"]


def tariterator(
    fileobj: ReadsBytes,
    keys: Keys = base_plus_ext,
    decoder: DecoderSpec = True,
    suffixes: Collection[str] | None = None,
    errors: Errors = True,
    container: str | None = None,
    *,
    allow_pickle: bool = False,
) -> Iterator[Any]:
    """Iterate through the samples of a tar file: consecutive files with one key.

    Files that are not regular, whose name has no extension, or is such as ``__meta__``, are left
    out. The stream is read in order and not closed; gzip, bzip2 and xz are unpacked. Blocks while
    reading.

    :param fileobj: a binary stream; its ``read(size)`` may return fewer bytes before the end.
    :param keys: function from a path to (key, suffix), or (None, None) to leave the file out.
    :param decoder: True: by extension, images as float32 (H, W, 3); an imagespec; False: leave
        bytes; a dict from extensions to functions of bytes; a function of the sample.
    :param suffixes: the suffixes to read, in lower case; None: all.
    :param errors: True: raise; ``"warn"``: warn, and leave the bad sample out; False: leave it out
        silently. Where the tar itself is broken, iteration then ends.
    :param container: ``"mp"``, ``"json"``, ``"ten"`` or ``"pyd"``: each file is a whole sample.
    :param allow_pickle: decode pickled fields and containers, which lets the shard run code here.
    :returns: an iterator of dicts from suffixes in lower case to values, with ``__key__``, the path
        up to the first dot of its last component; of what was stored, with a container (``ten``:
        tuples of arrays; a dict gets the file's ``__key__`` where none was stored). A function as
        decoder gets such a dict of bytes and returns the sample.
    :raises ShardError: from the iterator: the tar is broken or truncated, or reading the stream fails.
    :raises SampleError: from the iterator: a field twice, or one that does not decode; a ValueError.
    :raises ConfigError: here: decoder, errors or container make no sense.
    """
    decode = make_decoder(decoder, allow_pickle=allow_pickle)
    unpack = None if container is None else container_decoder(container, allow_pickle=allow_pickle)
    wanted = None if suffixes is None else _suffix_set(suffixes)
    return iterate_samples(fileobj, None, keys, wanted, decode, unpack, check_errors(errors))


def read_sample(
    data: bytes | memoryview, keys: Keys = base_plus_ext, suffixes: Collection[str] | None = None
) -> dict[str, Any]:
    """Read the one sample whose members, headers and all, are in memory; as ``tariterator(decoder=False)``.

    :returns: ``__key__`` and the fields' bytes.
    :raises ShardError: the bytes are not whole members, or belong to no sample.
    :raises SampleError: a field is there twice.
    """
    wanted = suffixes if suffixes is None or isinstance(suffixes, frozenset | set) else _suffix_set(suffixes)
    data = bytes(data) if isinstance(data, memoryview) else data
    plain = read_plain_sample(data, keys, wanted)
    if plain is not None:
        return plain
    for sample in group_members(BytesSource(data), keys, wanted, part=True):
        if isinstance(sample, SampleError):
            raise sample
        return sample
    raise ShardError("no sample where the manifest has one; make it again with `shardfeed index`")


def _suffix_set(suffixes: Collection[str]) -> Collection[str]:
    return frozenset(re.split(r"[;\s]+", suffixes) if isinstance(suffixes, str) else suffixes)


def iterate_samples(
    fileobj: ReadsBytes,
    shard: str | None,
    keys: Keys,
    suffixes: Collection[str] | None,
    decode: Decoder | None,
    unpack: Callable[[bytes], Any] | None,
    errors: Errors,
) -> Iterator[Any]:
    """Iterate the samples of one shard, whose name goes into errors; else as ``tariterator``.

    :param decode: from ``make_decoder``; ``unpack``: from ``container_decoder``.
    """
    for sample in _read(fileobj, shard, keys, suffixes, unpack, errors):
        try:
            if isinstance(sample, SampleError):
                raise sample
            decoded = sample if decode is None else decode(sample)
        except ConfigError:
            raise
        except Exception as error:
            report(_in_shard(error, shard), errors)
            continue
        yield decoded


def _read(
    fileobj: ReadsBytes,
    shard: str | None,
    keys: Keys,
    suffixes: Collection[str] | None,
    unpack: Callable[[bytes], Any] | None,
    errors: Errors,
) -> Iterator[Any]:
    """Yield samples, undecoded, and an error in the place of each bad one; end where the shard is broken."""
    try:
        source = StreamSource(fileobj)
        yield from group_members(source, keys, suffixes) if unpack is None else _unpack_members(source, keys, unpack)
    except Exception as error:
        report(broken(error, shard, errors), errors)


def check_errors(errors: Errors) -> Errors:
    """Return what ``errors`` of ``tariterator`` says, or raise ConfigError: what is unknown must leave nothing out."""
    if errors not in (True, False, "warn"):
        raise ConfigError(f"errors {errors!r}: give True, 'warn' or False")
    return errors if errors == "warn" else bool(errors)


def broken(error: Exception, shard: str | None, errors: Errors) -> Exception:
    """Make of what ended the reading of a shard what is to be reported: an error that names the shard.

    What is no error of reading, such as a mistake in a user's own function, is left as it is where
    it will be raised.
    """
    if isinstance(error, ShardError | SampleError):
        return _in_shard(error, shard)
    if errors is True and not isinstance(error, OSError):
        return error
    where = "" if shard is None else f"shard {shard}: "
    named = ShardError(f"{where}it cannot be read: {str(error) or type(error).__name__}", shard=shard)
    named.__cause__ = error
    return named


def report(error: Exception, errors: Errors) -> None:
    """Raise an error, warn of it, or do nothing, as ``errors`` of ``tariterator`` says.

    :raises Exception: the error itself, where ``errors`` is True.
    """
    if errors is True:
        raise error
    if errors == "warn":
        warnings.warn(f"left out: {error}", stacklevel=3)


def _in_shard(error: Exception, shard: str | None) -> Exception:
    """Add the shard's name to an error of ours that has none."""
    if shard is None or not isinstance(error, SampleError | ShardError) or error.shard is not None:
        return error
    named = copy.copy(error)
    named.shard = shard
    named.args = (f"shard {shard}: {error}",)
    named.__cause__ = error.__cause__
    return named


def _unpack_members(source: Source, keys: Keys, unpack: Callable[[bytes], Any]) -> Iterator[Any]:
    """Yield each file of a tar as the sample it holds, and an error in the place of each that holds none."""
    for member in walk(source):
        if is_meta(member[0]):
            continue
        data = read_member(source, member)
        try:
            sample = unpack(data)
        except Exception as error:
            reason = f"it does not decode: {type(error).__name__}: {error}"
            yield SampleError(f"sample {member[0]}: {reason}", key=member[0], reason=reason)
            continue
        if isinstance(sample, dict):
            sample.setdefault("__key__", keys(member[0])[0] or member[0])
        yield sample
