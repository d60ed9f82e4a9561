"""From a member's name to the sample it belongs to and the field it is."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Final, TypeAlias

__all__ = ["NO_PREFIX", "Keys", "base_plus_ext", "field_of", "is_meta", "prefix_of"]

Keys: TypeAlias = Callable[[str], tuple[str | None, str | None]]
"""From a path to key and suffix, or to None for a file of no sample."""

NO_PREFIX: Final = b"\0"
"""What no member's name begins with."""

_META = re.compile(r"__[^/]*__(?:$|/)")


def base_plus_ext(path: str) -> tuple[str | None, str | None]:
    """Split a path at the first dot of its last component: ``a.b/c.seg.png`` -> ``a.b/c``, ``seg.png``.

    :returns: key and suffix, the suffix as written; or (None, None) where the last component has
        no dot or starts with it, so that the file belongs to no sample.
    """
    slash = path.rfind("/") + 1
    dot = path.find(".", slash)
    if dot <= slash:
        return None, None
    return path[:dot], path[dot + 1 :]


def is_meta(path: str) -> bool:
    """Say whether a path names something about the shard, such as ``__meta__`` or ``__info__/a.txt``."""
    return path.startswith("__") and _META.match(path) is not None


def prefix_of(key: str, keys: Keys) -> bytes:
    """Return how the names of a sample's further members begin, for `field_of`; or `NO_PREFIX`."""
    # What may speak of the shard is looked at whole; and a user's own function finds keys as it likes.
    if keys is not base_plus_ext or key.startswith("__"):
        return NO_PREFIX
    return key.encode("utf-8", "surrogateescape") + b"."


@functools.lru_cache(1024)
def field_of(rest: bytes) -> str | None:
    """Return the field that a name names, in lower case, by what follows its sample's prefix; None: split it anew."""
    return None if b"/" in rest else rest.decode("utf-8", "surrogateescape").lower()
