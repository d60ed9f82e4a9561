"""What a server is told: typed, from ``shardfeed.toml`` or from the command line's options.

`docs/configuration.md` describes every key.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from shardfeed_server.http_address import check_http
from shardfeed_server.output_config import OutputConfig, check_outputs, read_outputs
from shardfeed_server.tables import Place, Reader, read_table
from shardfeed_wire.endpoint import expand_braces, parse_endpoint
from shardfeed_wire.errors import ConfigError
from shardfeed_wire.exposure import check_exposure
from webdataset.images import MAX_PIXELS
from webdataset.manifest import BLOCK_BYTES
from webdataset.remoteblocks import CACHE_BYTES

__all__ = [
    "Collate",
    "FieldConfig",
    "Interpolation",
    "ServerConfig",
    "StreamConfig",
    "load_config",
    "stream_from_options",
]

Collate: TypeAlias = Literal["stack", "pad", "ragged"]
Interpolation: TypeAlias = Literal["bilinear", "bicubic", "nearest"]


class FieldConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A field's own table; `docs/recipe.md` says what each key does."""

    ext: str
    decode: str | bool | None = None
    collate: Collate = "stack"
    pad_value: float = 0
    max_len: int | None = None
    mask: bool | str = False
    interpolation: Interpolation | None = None
    label_map: dict[str, int] | str | None = None


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One stream: shards and a recipe.

    ``shards`` are paths or URLs, with braces. ``fields`` is text (``jpg;png cls`` for tuples,
    ``image=jpg;png label=cls`` for dicts), a list of fields (tuples) or a table of them (dicts).
    ``transform`` is ``module:name``. ``max_pixels`` bounds width x height of a picture before it
    is decoded; ``block_bytes`` is where blocks are cut; ``partial`` serves those of the manifest's
    shards that are here. Raises ConfigError for a bound below 1, and for partial without a manifest.
    """

    shards: str | tuple[str, ...]
    fields: str | tuple[str | FieldConfig, ...] | dict[str, str | FieldConfig]
    decode: str | bool = "rgb8"
    transforms: tuple[str, ...] = ()
    transform: str | None = None
    manifest: str | None = None
    max_pixels: int = MAX_PIXELS
    block_bytes: int = BLOCK_BYTES
    exclude_bad: bool = False
    partial: bool = False

    def __post_init__(self) -> None:
        _at_least_one("max_pixels", self.max_pixels)
        _at_least_one("block_bytes", self.block_bytes)
        if self.partial and self.manifest is None:
            raise ConfigError(
                "partial: servers that read different shards share one manifest; make it where all shards are, with "
                "`shardfeed index`, and name it as manifest"
            )

    @property
    def needs_torch(self) -> bool:
        """Whether samples are made with torch, which takes seconds to import.

        Pictures are resized and flipped by it, or become its tensors; a Python transform may draw from its generator.
        """
        fields = self.fields.values() if isinstance(self.fields, dict) else self.fields
        decoders = [self.decode, *(field.decode for field in fields if isinstance(field, FieldConfig))]
        made = any(isinstance(decode, str) and decode.startswith("torch") for decode in decoders)
        return made or bool(self.transforms) or self.transform is not None

    def shard_paths(self) -> list[str]:
        """Return the shards, braces expanded, in order. Raises ConfigError for a brace that does not close."""
        given = [self.shards] if isinstance(self.shards, str) else self.shards
        return [path for text in given for path in expand_braces(text)]


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One server.

    ``workers`` is None for one a core. ``insecure`` allows addresses that other machines reach.
    ``curve`` is the file of the server's CURVE keys, which encrypt ZeroMQ and let known clients in; None or an
    empty name for none.
    ``name`` is the server's stable name, None for one made of host and port. ``code_dir`` is where
    Python transforms are imported from. ``send_bytes`` bounds answers that are finished and not yet
    sent, over all clients; ``shared_bytes`` the memory lent to clients on this machine, 0 for none;
    ``answer_cache_bytes``, within ``send_bytes``, the finished answers kept for equal requests, 0 for none;
    ``queue_requests`` the requests that wait. After ``sample_timeout``
    seconds at one sample a worker is replaced. ``cache_bytes`` bounds the blocks of far shards that are
    kept, in memory or, where given, in the folder ``cache_dir``. ``http`` is where health and figures are,
    ``off`` for nowhere and None for the default; ``http_public`` allows others to read them. ``outputs`` are what is
    sent as plain streams. Raises ConfigError for an address that needs ``insecure`` or ``http_public``, no stream,
    an output of none of them, or a bound that is not positive.
    """

    streams: dict[str, StreamConfig]
    bind: tuple[str, ...] = ("tcp://127.0.0.1:7880",)
    workers: int | None = None
    insecure: bool = False
    curve: str | None = None
    name: str | None = None
    code_dir: str | None = None
    send_bytes: int = 1 << 30
    shared_bytes: int = 1 << 30
    answer_cache_bytes: int = 1 << 28
    queue_requests: int = 1024
    sample_timeout: float = 60.0
    cache_bytes: int = CACHE_BYTES
    cache_dir: str | None = None
    http: str | None = None
    http_public: bool = False
    outputs: tuple[OutputConfig, ...] = ()

    def __post_init__(self) -> None:
        if not self.streams:
            raise ConfigError("no stream is configured; write a table [streams.NAME] with shards and fields")
        if "" in self.streams:
            raise ConfigError("a stream's name is empty; give it one, such as train")
        if not self.bind:
            raise ConfigError('bind is empty; write for example bind = ["tcp://127.0.0.1:7880"]')
        for url in self.bind:
            loopback = parse_endpoint(url).is_loopback
            check_exposure("bind", url, loopback=loopback, insecure=self.insecure, curve=bool(self.curve))
        check_http(self.http, public=self.http_public or self.insecure)
        check_outputs(self.outputs, self.streams, insecure=self.insecure)
        if self.workers is not None:
            _at_least_one("workers", self.workers)
        _at_least_one("send_bytes", self.send_bytes)
        if self.shared_bytes < 0:
            raise ConfigError(f"shared_bytes is {self.shared_bytes}; it must be 0 (lend no memory) or more")
        if self.answer_cache_bytes < 0:
            raise ConfigError(
                f"answer_cache_bytes is {self.answer_cache_bytes}; it must be 0 (keep no answers) or more"
            )
        _at_least_one("queue_requests", self.queue_requests)
        _at_least_one("cache_bytes", self.cache_bytes)
        if not self.sample_timeout > 0:
            raise ConfigError(f"sample_timeout is {self.sample_timeout}; it is seconds and must be above 0")


def load_config(path: str | os.PathLike[str], overrides: Mapping[str, object] | None = None) -> ServerConfig:
    """Read a configuration file.

    ``overrides`` are keys of the file's top level that count instead of what the file says; their
    paths are relative to the current folder. Relative paths in the file (shards, manifest, code_dir,
    cache_dir, curve, label maps) are relative to the file's folder and come back joined to it. Blocks on the file.
    Raises ConfigError, naming file, place, key and what to write.
    """
    file = Path(path)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8").removeprefix("\ufeff"))  # which some editors put there
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {file}: {error.strerror}; give --config a TOML file"
        ) from error
    except (ValueError, RecursionError) as error:  # not each is a TOMLDecodeError: a number of 5,000 digits is none
        raise ConfigError(f"{file} is not TOML: {error}; correct that line") from error
    folder = file.parent
    for key in ("code_dir", "cache_dir", "curve"):
        if isinstance(place := table.get(key), str) and place:
            table[key] = _joined(folder, place, Place(str(file)) / key)
    table.update(overrides or {})
    readers: dict[str, Reader] = {
        "streams": lambda value, place: _read_streams(value, place, folder),
        "bind": _read_bind,
        "outputs": read_outputs,
    }
    return read_table(ServerConfig, table, Place(str(file)), readers)


def stream_from_options(
    shards: Sequence[str],
    *,
    fields: str,
    decode: str | None = None,
    resize: str | None = None,
    transforms: Sequence[str] = (),
    transform: str | None = None,
    manifest: str | None = None,
    max_pixels: int | None = None,
    block_bytes: int | None = None,
    exclude_bad: bool = False,
    partial: bool = False,
) -> StreamConfig:
    """Make the one stream of ``shardfeed serve SHARDS --fields ...``; None means the default.

    ``resize`` stands before ``transforms``. Raises ConfigError as ``StreamConfig`` does.
    """
    table: dict[str, object] = {
        "shards": list(shards),
        "fields": fields,
        "decode": decode,
        "transforms": [*([f"resize={resize}"] if resize else []), *transforms],
        "transform": transform,
        "manifest": manifest,
        "max_pixels": max_pixels,
        "block_bytes": block_bytes,
        "exclude_bad": exclude_bad,
        "partial": partial,
    }
    given = {key: value for key, value in table.items() if value is not None}
    return read_table(StreamConfig, given, Place("the command line"), {})


def _read_bind(value: object, place: Place) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and all(isinstance(url, str) for url in value):
        return tuple(value)
    raise place.error(f'found {value!r}: expected a URL or a list of them, such as ["tcp://127.0.0.1:7880"]')


def _read_streams(value: object, place: Place, folder: Path) -> dict[str, StreamConfig]:
    if not isinstance(value, dict):
        raise place.error(f"found {value!r}: expected tables, [streams.NAME]")
    readers = {"fields": lambda value, place: _read_fields(value, place, folder)}
    streams = {}
    for name, table in value.items():
        here = place / name
        stream = read_table(StreamConfig, table, here, readers)
        shards = (stream.shards,) if isinstance(stream.shards, str) else stream.shards
        joined = tuple(_joined(folder, each, here / "shards") for each in shards)
        streams[name] = msgspec.structs.replace(
            stream,
            shards=joined[0] if isinstance(stream.shards, str) else joined,
            manifest=None if stream.manifest is None else _joined(folder, stream.manifest, here / "manifest"),
        )
    return streams


def _read_fields(
    value: object, place: Place, folder: Path
) -> str | tuple[str | FieldConfig, ...] | dict[str, str | FieldConfig]:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return tuple(_read_field(item, place / str(number), folder) for number, item in enumerate(value))
    if isinstance(value, dict):
        return {name: _read_field(item, place / name, folder) for name, item in value.items()}
    raise place.error(f'found {value!r}: expected text, a list or a table, such as "jpg;png cls"')


def _read_field(value: object, place: Place, folder: Path) -> str | FieldConfig:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise place.error(f'found {value!r}: expected extensions such as "jpg;png", or a table with the key ext')
    field = read_table(FieldConfig, value, place, {})
    if isinstance(field.label_map, str):
        return msgspec.structs.replace(field, label_map=_joined(folder, field.label_map, place / "label_map"))
    return field


def _joined(folder: Path, path: str, place: Place) -> str:
    """Join a path to a folder, unless it is absolute, a URL or a pipe."""
    if "\0" in path:
        raise place.error(f"found {path!r}: no path holds a zero byte; write one that is there")
    if "://" in path or path.startswith(("/", "pipe:")):
        return path
    if path.startswith("~"):
        try:
            return str(Path(path).expanduser())
        except RuntimeError:
            raise place.error(f"found {path!r}: nobody here has that home; write the path from / on") from None
    return str(folder / path)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} is {value}; it must be 1 or more")
