"""Shards: tar files of samples, read, decoded, written and numbered.

``WebDataset``, ``tariterator``, ``TarWriter``, ``ShardWriter`` and ``tenbin`` are imported when they
are first used, so that a process which only looks up a manifest does not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from webdataset import tenbin
    from webdataset.dataset import WebDataset
    from webdataset.decode import default_handlers
    from webdataset.gopen import reader
    from webdataset.images import imagehandler
    from webdataset.samples import tariterator
    from webdataset.writer import ShardWriter, TarWriter

__all__ = [
    "ShardWriter",
    "TarWriter",
    "WebDataset",
    "default_handlers",
    "imagehandler",
    "reader",
    "tariterator",
    "tenbin",
]

__distribution__ = "shardfeed"
"""Another distribution bears this package's name; by this line, unimported, ours is known."""

_HOMES = {
    "ShardWriter": "writer",
    "TarWriter": "writer",
    "WebDataset": "dataset",
    "default_handlers": "decode",
    "imagehandler": "images",
    "reader": "gopen",
    "tariterator": "samples",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"webdataset.{_HOMES[name]}"), name)
    if name == "tenbin":
        return import_module("webdataset.tenbin")
    raise AttributeError(f"module 'webdataset' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
