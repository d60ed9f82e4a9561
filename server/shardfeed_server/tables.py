"""From a TOML table to a typed structure, with errors that name the file, the place, the key and what to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin

import msgspec

from shardfeed_wire.errors import ConfigError

__all__ = ["Place", "Reader", "nearest", "read_table"]

S = TypeVar("S", bound=msgspec.Struct)


class Place(msgspec.Struct, frozen=True):
    """Where something was written: the file, or whatever it came from, and the dotted name in it."""

    source: str
    name: str = ""

    def __truediv__(self, key: str) -> Place:
        return Place(self.source, f"{self.name}.{key}" if self.name else key)

    def error(self, reason: str) -> ConfigError:
        """Return the error that says ``reason`` of this place."""
        return ConfigError(f"{self.source}: {self.name}{': ' if self.name else ''}{reason}")


Reader: TypeAlias = Callable[[object, Place], object]
"""Makes the value of one key out of what was written at a place, or raises ConfigError."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known name that is nearest, else ``; known are ...``."""
    names = list(known)
    found = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else f"; known are {', '.join(names)}"


def read_table(cls: type[S], table: object, place: Place, readers: Mapping[str, Reader]) -> S:
    """Make ``cls`` from a table; keys in ``readers`` are read by them, the others by their type.

    Raises ConfigError for an unknown key, a missing one and a value of a wrong type.
    """
    if not isinstance(table, Mapping):
        raise place.error(f"expected a table, found {_shown(table)}")
    fields = {field.name: field for field in msgspec.structs.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            raise (place / key).error(f"there is no key {key!r} here{nearest(key, fields)}")
        if key in readers:
            values[key] = readers[key](value, place / key)
        else:
            values[key] = _read_value(fields[key].type, value, place / key)
    for name, field in fields.items():
        if field.required and name not in values:
            raise place.error(f"the key {name!r} is missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise place.error(str(error)) from None


def _read_value(kind: Any, value: object, place: Place) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, inside = str(error).replace("`", "").partition(" - at $")
        reason = reason.replace("Expected", "expected").replace("str", "text").replace("null", "nothing")
        if isinstance(value, str) and (words := list(_words(kind))):
            reason = f"it is none of the words for this key{nearest(value, words)}"
        raise place.error(f"found {_shown(value)}{f' (at {inside})' if inside else ''}: {reason}") from None


def _words(kind: Any) -> Iterable[str]:
    """Yield the texts that a type made of Literals takes."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        for part in get_args(kind):
            yield from _words(part)


def _shown(value: object) -> str:
    names = {str: "the text", bool: "", int: "the number", float: "the number", list: "the list", dict: "the table"}
    shown = repr(value)
    return f"{names.get(type(value), '')} {shown if len(shown) <= 60 else shown[:57] + '...'}".strip()
