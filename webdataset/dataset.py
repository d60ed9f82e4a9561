"""Train PyTorch models directly from POSIX tar archives, locally or over HTTP connections.

``WebDataset`` needs PyTorch. ``tariterator`` does not, and is in ``webdataset.samples`` for those
who must not import it.
"""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeAlias

from torch.utils.data import IterableDataset, get_worker_info

from shardfeed_wire.endpoint import expand_braces
from shardfeed_wire.errors import ConfigError
from webdataset.decode import DecoderSpec, container_decoder, default_handlers, imagehandler, make_decoder
from webdataset.gopen import Opener, make_opener
from webdataset.gopen import reader as reader
from webdataset.keys import base_plus_ext as base_plus_ext
from webdataset.samples import Errors, Keys, broken, check_errors, iterate_samples, report, tariterator
from webdataset.tarsource import ReadsBytes

__all__ = ["WebDataset", "default_handlers", "imagehandler", "tariterator"]

Extensions: TypeAlias = str | Sequence[str | Sequence[str]]
Transforms: TypeAlias = Sequence[Callable[[Any], Any] | None] | Callable[[Any], Any]
Associate: TypeAlias = Callable[[str], Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]

# A shuffle buffer begins to yield when it holds this many, so that training starts soon.
_FIRST_SAMPLES = 100
# Tars are padded to records of usually 10 kB.
_MOST_READ_AFTER_END = 1 << 20
_PIECE = 64 << 10


class WebDataset(IterableDataset[Any]):
    """Iterate over sharded datasets.

    Samples are dicts with ``__key__``; with ``extensions``, tuples. In the workers of a DataLoader
    each worker reads its own shards. Iterating blocks while shards are read, and closes them.

    Four attributes may be looked at or set before iterating: ``full_urls``, all shards; ``urls``,
    those that this process reads, chosen by ``shard_selection``; ``subset``, an (index, total) pair:
    read only every total-th shard from that index on, instead of the split by workers; and
    ``extra_meta``: True puts ``__webdataset__``, a tuple that holds the subset, into each sample
    that is a dict.
    """

    def __init__(
        self,
        urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        extensions: Extensions | None = None,
        decoder: DecoderSpec = "rgb",
        transforms: Transforms | None = None,
        pipeline: Callable[[Iterator[Any]], Iterable[Any]] | None = None,
        keys: Keys = base_plus_ext,
        opener: Opener | str = reader,
        errors: Errors = True,
        verbose: bool = False,
        shuffle: int = 0,
        associate: Associate | None = None,
        prepare_for_worker: bool | Callable[[], object] = True,
        container: str | None = None,
        allow_pickle: bool = False,
    ) -> None:
        """Say what to read and what to make of it; nothing is opened yet.

        :param urls: shards: a string whose braces are expanded, or a list.
        :param extensions: ``"png;jpg cls"``, or a list of lists: samples become tuples, of each
            group the first extension present, None where none is.
        :param decoder: True or an imagespec: by extension, images as that says; None or False: leave
            bytes; a dict from extensions to functions of bytes; a function of the sample.
        :param transforms: list of functions (or one) applied to the fields of tuples, one a field, cycling;
            None leaves a field.
        :param pipeline: function from the iterator of samples to another, such as for batching.
        :param keys: as for ``tariterator``.
        :param opener: function from url to a binary stream, or a shell command with ``{url}`` in it
            that writes the shard to its standard output.
        :param errors: True: raise; ``"warn"``: warn and go on with the next sample, or the next shard
            where the shard cannot be opened or is broken; False: go on silently.
        :param verbose: name each shard on the standard error when it is opened.
        :param shuffle: over 0: shuffle shards; over 1: also samples, in a buffer of that many. The
            order is drawn from Python's ``random``.
        :param associate: function from a key to a dict of further fields, or a dict of such dicts.
        :param prepare_for_worker: function called before anything else in each iteration, thus in
            each worker; False: also leave out the split of shards by ``shard_selection``.
        :param container: as for ``tariterator``.
        :param allow_pickle: decode pickled fields and containers, which lets the shards run code here.
        :raises ConfigError: a parameter makes no sense.
        """
        given = expand_braces(os.fspath(urls)) if isinstance(urls, str | os.PathLike) else urls
        self.full_urls = [os.fspath(url) for url in given]
        if not self.full_urls:
            raise ConfigError("no shards were given: name at least one")
        self.urls = self.full_urls
        self.subset: tuple[int, int] | None = None
        self.extra_meta = False
        self.extensions = None if extensions is None else _parse_extensions(extensions)
        self.decoder = make_decoder(decoder, allow_pickle=allow_pickle)
        self.transforms = [transforms] if callable(transforms) else list(transforms or [])
        self.pipeline = pipeline
        self.keys = keys
        self.opener = make_opener(opener)
        self.errors = check_errors(errors)
        self.verbose = verbose
        self.shuffle = int(shuffle)
        self.associate = associate
        self.prepare_for_worker = prepare_for_worker
        self.unpack = None if container is None else container_decoder(container, allow_pickle=allow_pickle)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over samples; each iteration begins anew. Blocks while shards are read.

        :returns: an iterator of what the parameters make of the samples, or of what ``pipeline`` does.
        :raises ShardError: from the iterator, with ``errors=True``: a shard cannot be opened or is broken.
        :raises SampleError: from the iterator, with ``errors=True``: a field twice, or one that does
            not decode; a ValueError.
        """
        if callable(self.prepare_for_worker):
            self.prepare_for_worker()
        if self.prepare_for_worker is not False:
            self.shard_selection()
        urls = list(self.urls)
        if self.shuffle > 0:
            random.shuffle(urls)
        samples = self._finish(self._read(urls))
        if self.shuffle > 1:
            samples = _shuffle(samples, self.shuffle)
        return iter(samples if self.pipeline is None else self.pipeline(samples))

    def shard_selection(self) -> None:
        """Contains the logic for self.subset shard selection.

        Sets ``urls`` to the shards of the ``subset`` or else of this DataLoader worker, or to all; and
        warns where there are fewer shards than parts.
        """
        index, total = 0, 1
        if self.subset is not None:
            index, total = self.subset
        elif (worker := get_worker_info()) is not None:
            index, total = worker.id, worker.num_workers
        if index == 0 and len(self.full_urls) < total:
            warnings.warn(
                f"{total} workers for {len(self.full_urls)} shards: some will read nothing; use fewer, or more shards",
                stacklevel=3,
            )
        self.urls = self.full_urls[index::total]

    def _read(self, urls: Iterable[str]) -> Iterator[Any]:
        """Read shards one after the other."""
        wanted = (
            None if self.extensions is None or self.unpack else {name for group in self.extensions for name in group}
        )
        if self.associate is not None or (self.decoder is not None and not _by_extension(self.decoder)):
            # A decoder of the user's own may need fields that are left out afterwards.
            wanted = None
        for url in urls:
            if self.verbose:
                sys.stderr.write(f"reading {url}\n")
            try:
                stream = self.opener(url)
            except ConfigError:
                raise
            except Exception as error:
                report(broken(error, url, self.errors), self.errors)
                continue
            with closing(stream):  # type: ignore[type-var]  # every stream can be closed
                yield from iterate_samples(stream, url, self.keys, wanted, self.decoder, self.unpack, self.errors)
                try:
                    _drain(stream)
                except Exception as error:
                    report(broken(error, url, self.errors), self.errors)

    def _finish(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Add what is associated, pick the extensions, apply the transforms."""
        with closing(samples):  # type: ignore[type-var]  # a generator
            for sample in samples:
                try:
                    if self.associate is not None and isinstance(sample, dict):
                        sample.update(self._associated(sample["__key__"]))
                except ConfigError:
                    raise
                except Exception as error:
                    report(error, self.errors)
                    continue
                if self.extra_meta and isinstance(sample, dict):
                    sample["__webdataset__"] = (self.subset,)
                result = sample
                if self.extensions is not None and isinstance(sample, dict):
                    result = tuple(_first_present(sample, group) for group in self.extensions)
                if self.transforms:
                    try:
                        result = self._transform(result)
                    except ConfigError:
                        raise
                    except Exception as error:
                        report(error, self.errors)
                        continue
                yield result

    def _associated(self, key: str) -> Mapping[str, Any]:
        assert self.associate is not None
        return self.associate(key) if callable(self.associate) else self.associate.get(key, {})

    def _transform(self, sample: Any) -> tuple[Any, ...]:
        if not isinstance(sample, tuple | list):
            raise ConfigError("transforms need samples that are tuples: give extensions, too")
        chosen = (self.transforms[number % len(self.transforms)] for number in range(len(sample)))
        return tuple(
            value if function is None else function(value) for value, function in zip(sample, chosen, strict=True)
        )


def _parse_extensions(extensions: Extensions) -> list[list[str]]:
    groups = extensions.split() if isinstance(extensions, str) else extensions
    parsed = [group.split(";") if isinstance(group, str) else list(group) for group in groups]
    if not parsed or not all(name for group in parsed for name in group):
        raise ConfigError(f"extensions {extensions!r}: write them as in 'png;jpg cls'")
    return [[name.lower() for name in group] for group in parsed]


def _first_present(sample: dict[str, Any], group: list[str]) -> Any:
    return next((sample[name] for name in group if name in sample), None)


def _by_extension(decoder: Callable[[Any], Any]) -> bool:
    """Say whether a decoder is one that ``make_decoder`` made from a table, and looks at one field at a time."""
    return "handlers" in getattr(decoder, "keywords", {})


def _drain(stream: ReadsBytes) -> None:
    """Read what follows a tar's end mark, so that a command that fails after it is heard of."""
    for _ in range(_MOST_READ_AFTER_END // _PIECE):
        if not stream.read(_PIECE):
            return


def _shuffle(samples: Iterator[Any], size: int) -> Iterator[Any]:
    """Yield samples in random order, from a buffer that grows to ``size`` while it is already in use."""
    first = min(size, _FIRST_SAMPLES)
    buffer: list[Any] = []
    growing = True
    with closing(samples):  # type: ignore[type-var]  # a generator
        for sample in samples:
            buffer.append(sample)
            # Until it is full, one is yielded for every two that come.
            growing = not growing if len(buffer) < size else False
            if len(buffer) < first or growing:
                continue
            chosen = random.randrange(len(buffer))
            buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
            yield buffer.pop()
    random.shuffle(buffer)
    yield from buffer
