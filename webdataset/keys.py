"""From a member's name to the sample it belongs to and the field it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Keys", "base_plus_ext", "is_meta"]

Keys: TypeAlias = Callable[[str], tuple[str | None, str | None]]
"""From a path to key and suffix, or to None for a file of no sample."""

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
