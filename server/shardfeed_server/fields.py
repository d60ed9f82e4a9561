"""The fields of a recipe: which extensions they are found under and what becomes of their bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from shardfeed_server.config import Collate, FieldConfig, Interpolation, StreamConfig
from shardfeed_wire.errors import ConfigError
from shardfeed_wire.messages import Padding
from webdataset.decode import default_handlers
from webdataset.images import decode_image, find_imagespec

__all__ = ["IMAGE_EXTENSIONS", "Field", "parse_fields"]

IMAGE_EXTENSIONS: Final = frozenset(
    extension
    for extension, handler in default_handlers["rgb8"].items()
    if getattr(handler, "func", None) is decode_image
)
"""Extensions whose fields a stream's ``decode`` applies to."""

_FAST: Final = "fast"
"""What is written for ``rgb8`` from a picture that may be decoded smaller than it is."""

_MOST_PADDED: Final = 1 << 32
"""A client pads a column to 4 GiB at most."""

_PICKLES: Final = frozenset(("pyd", "pickle", "pth"))
_MASK_NAME: Final = re.compile(r"(.*_)?mask")
_MASK_EXTENSION: Final = re.compile(r"(.*\.)?(mask|seg)(\..*)?")
_EXAMPLE: Final = "'jpg;png cls' for tuples or 'image=jpg;png label=cls' for dicts"


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    ``extensions`` are tried in order, the first one present counts. ``imagespec`` is set for an image
    field; ``raw`` fields stay bytes. ``fast`` ones may be decoded smaller than they
    are. ``labels`` maps what is stored to numbers.
    """

    name: str
    extensions: tuple[str, ...]
    imagespec: str | None
    raw: bool
    fast: bool
    collate: Collate
    padding: Padding | None
    interpolation: Interpolation
    labels: Mapping[str, int] | None

    def __str__(self) -> str:
        """Say all of it in words, for the facts of a recipe."""
        words = [";".join(self.extensions), "bytes" if self.raw else self.imagespec or "by extension", self.collate]
        words += ["fast"] if self.fast else []
        if self.padding is not None:
            words.append(f"pad {self.padding.value:g} to {self.padding.length or 'the longest'}")
            words += [f"mask {self.padding.mask}"] if self.padding.mask else []
        words += [self.interpolation] if self.imagespec is not None else []
        return ", ".join(words)


def parse_fields(config: StreamConfig) -> tuple[tuple[Field, ...], bool]:
    """Return the fields of a stream in order, and whether they are unnamed, so that batches are tuples.

    An unnamed field goes by its first extension. Blocks on label maps that are files. Raises
    ConfigError, naming the field, for anything that makes no sense.
    """
    written = config.fields
    unnamed = isinstance(written, tuple) or (isinstance(written, str) and "=" not in written)
    if isinstance(written, str):
        pairs = _split(written, unnamed=unnamed)
    elif isinstance(written, Mapping):
        pairs = [(name, _table(field)) for name, field in written.items()]
    else:
        pairs = [(_extensions(_table(field).ext)[0], _table(field)) for field in written]
    if not pairs:
        raise ConfigError(f"fields is empty; write for example {_EXAMPLE}")
    fields = tuple(_field(name, table, config) for name, table in pairs)
    _check_names(fields)
    return fields, unnamed


def _split(text: str, *, unnamed: bool) -> list[tuple[str, FieldConfig]]:
    pairs = []
    for word in text.split():
        name, equals, extensions = word.partition("=")
        if unnamed:
            pairs.append((_extensions(word)[0], FieldConfig(ext=word)))
        elif equals and name and extensions:
            pairs.append((name, FieldConfig(ext=extensions)))
        else:
            raise ConfigError(
                f"fields {text!r}: {word!r} must be NAME=EXTENSIONS, for other fields have names; write {_EXAMPLE}"
            )
    return pairs


def _table(field: str | FieldConfig) -> FieldConfig:
    return FieldConfig(ext=field) if isinstance(field, str) else field


def _extensions(text: str) -> tuple[str, ...]:
    extensions = tuple(part.strip().lstrip(".").lower() for part in text.split(";"))
    if not all(extensions) or any(" " in extension for extension in extensions):
        raise ConfigError(f"extensions {text!r}: write one or more with semicolons between them, such as 'jpg;png'")
    return extensions


def _field(name: str, table: FieldConfig, config: StreamConfig) -> Field:
    extensions = _extensions(table.ext)
    decode = config.decode if table.decode is None else table.decode
    if decode is True:
        raise ConfigError(f"field {name!r}: decode is true; write an imagespec such as 'rgb8', or false for bytes")
    fast = decode is not False and decode.lower() == _FAST
    decode = "rgb8" if fast else decode
    imagespec = None if decode is False else _imagespec(name, extensions, decode, everywhere=table.decode is not None)
    interpolation = table.interpolation or ("nearest" if _is_mask(name, extensions) else "bilinear")
    if imagespec is None and decode is not False and (pickles := _PICKLES.intersection(map(_last, extensions))):
        raise ConfigError(
            f"field {name!r}: .{min(pickles)} holds pickled objects, which a server never decodes; "
            "write decode = false to send the bytes, or store arrays as .npy or .ten"
        )
    return Field(
        name=name,
        extensions=extensions,
        imagespec=imagespec,
        raw=decode is False,
        fast=fast and imagespec is not None and interpolation != "nearest",
        collate=table.collate,
        padding=_padding(name, table),
        interpolation=interpolation,
        labels=None if table.label_map is None else _labels(name, table.label_map),
    )


def _imagespec(name: str, extensions: tuple[str, ...], decode: str, *, everywhere: bool) -> str | None:
    """Return the imagespec of an image field, None for another; ``everywhere``: the field asked for it itself."""
    try:
        find_imagespec(decode)
    except ConfigError as error:
        raise ConfigError(f"field {name!r}: {error}") from None
    images = [extension for extension in extensions if _last(extension) in IMAGE_EXTENSIONS]
    if everywhere or len(images) == len(extensions):
        return decode.lower()
    if images:
        others = sorted(set(extensions) - set(images))
        raise ConfigError(
            f"field {name!r} mixes pictures (.{images[0]}) with .{others[0]}; "
            "make two fields of it, or say decode in its table"
        )
    return None


def _padding(name: str, table: FieldConfig) -> Padding | None:
    if table.collate != "pad":
        if table.max_len is not None or table.mask or table.pad_value:
            raise ConfigError(
                f'field {name!r}: max_len, mask and pad_value belong to collate = "pad"; write that, or leave them out'
            )
        return None
    if table.max_len is not None and not 1 <= table.max_len <= _MOST_PADDED:
        raise ConfigError(f"field {name!r}: max_len is {table.max_len}; it must be 1 to {_MOST_PADDED}")
    mask = f"{name}_mask" if table.mask is True else table.mask or None
    return Padding(value=table.pad_value, length=table.max_len, mask=mask)


def _labels(name: str, given: Mapping[str, int] | str) -> Mapping[str, int]:
    if not isinstance(given, str):
        return given
    try:
        return msgspec.json.decode(Path(given).read_bytes(), type=dict[str, int])
    except OSError as error:
        raise ConfigError(f"field {name!r}: the label map {given} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'field {name!r}: the label map {given} must be JSON such as {{"cat": 0}}: {error}'
        ) from error


def _check_names(fields: Iterable[Field]) -> None:
    seen: set[str] = set()
    for field in fields:
        for name in (field.name, field.padding.mask if field.padding else None):
            if name is None:
                continue
            if name in seen:
                raise ConfigError(f"two fields or masks are named {name!r}; give each its own name, as in {_EXAMPLE}")
            if name.startswith("__"):
                raise ConfigError(
                    f"field {name!r}: names that start with two underscores are shardfeed's own; take another"
                )
            seen.add(name)


def _is_mask(name: str, extensions: tuple[str, ...]) -> bool:
    return bool(_MASK_NAME.fullmatch(name)) or any(_MASK_EXTENSION.fullmatch(extension) for extension in extensions)


def _last(extension: str) -> str:
    return extension.rpartition(".")[2]
