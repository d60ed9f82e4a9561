"""What `shardfeed pack` packs: the files of a folder with one sub-folder a class, or of a list, with their labels."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NoReturn

from shardfeed_wire.errors import ConfigError

__all__ = ["EXTENSIONS", "Item", "Source", "read_folder", "read_list"]

EXTENSIONS = ("jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp")
"""Those of torchvision's ImageFolder."""

_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Item:
    """A sample to be: its file, the key it gets, its field (the file's ending) and its label."""

    path: Path
    key: str
    field: str
    label: int


@dataclass(frozen=True, slots=True)
class Source:
    """All samples to be, in order; the numbers of the classes, where they have names; files that were left out."""

    items: list[Item]
    classes: dict[str, int]
    ignored: int


def read_folder(folder: Path, extensions: Iterable[str], classes: Mapping[str, int] | None) -> Source:
    """List the files below each sub-folder of ``folder``, a class each, numbered in the order of their names.

    Files whose ending, in lower case, is not in ``extensions`` are left out and counted; hidden
    folders are no classes. ``classes``, where given, are the numbers to use. Blocks on the file
    system. Raises ConfigError where there is no class, a class without a number, or no file at all, and
    OSError for a folder that cannot be read.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ConfigError(f"{folder} has no sub-folders; make one for each class, or give a list: PATH, a tab, LABEL")
    numbers = _numbered(names, classes, str(folder))
    wanted = frozenset(extension.lower().lstrip(".") for extension in extensions)
    keys = _Keys()
    items: list[Item] = []
    ignored = 0
    for name in names:
        for path in _files(folder / name):
            field = path.suffix.lower().lstrip(".")
            if field in wanted:
                items.append(Item(path, keys.make(path.relative_to(folder)), field, numbers[name]))
            else:
                ignored += 1
    if not items:
        raise ConfigError(f"no file below {folder} ends with {', '.join(sorted(wanted))}; name others with --ext")
    return Source(items, numbers, ignored)


def read_list(file: Path, classes: Mapping[str, int] | None) -> Source:
    """Read lines of a path, a tab and a label; paths are relative to the list's folder.

    Labels that are all whole numbers count as such; otherwise they are the names of classes, numbered
    in the order of the names, or as ``classes`` says. Blocks on the file system. Raises ConfigError
    for a line that is none, and for files that are missing: they are named, with their lines.
    """
    lines = list(_lines(file))
    if not lines:
        raise ConfigError(f"{file} lists nothing; write lines of a path, a tab and a label")
    labels = [label for _, _, label in lines]
    numbers = {}
    if classes is not None or not all(_is_number(label) for label in labels):
        numbers = _numbered(sorted(set(labels)), classes, str(file))
    keys = _Keys()
    items = []
    missing = []
    for number, written, label in lines:
        path = file.parent / written
        if not path.is_file():
            missing.append(f"line {number}: {path}")
        elif not path.suffix:
            raise ConfigError(f"{file}, line {number}: {path} has no ending such as .jpg to name its field after")
        key = keys.make(PurePath(written))
        items.append(Item(path, key, path.suffix.lower()[1:], numbers[label] if numbers else int(label)))
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise ConfigError(f"{file} lists files that do not exist: {'; '.join(missing[:_MOST_NAMED])}{more}")
    return Source(items, numbers, 0)


def _lines(file: Path) -> Iterator[tuple[int, str, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the list {file} cannot be read: {error}; write lines of PATH, a tab, LABEL") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        path, tab, label = line.rpartition("\t")
        if not tab or not path.strip() or not label.strip():
            raise ConfigError(f"{file}, line {number}: {line!r} is not a path, a tab and a label")
        yield number, path.strip(), label.strip()


def _files(folder: Path) -> Iterator[Path]:
    """List the files below a folder. Raises OSError for a folder that cannot be read, or that links to itself."""
    for place, inside, files in os.walk(folder, followlinks=True, onerror=_raise):
        for name in inside:
            inner = Path(place, name)
            if inner.is_symlink() and Path(place).resolve().is_relative_to(inner.resolve()):
                raise OSError(errno.ELOOP, "it is a link to a folder that holds it", str(inner))
        inside.sort()
        yield from (Path(place, name) for name in sorted(files))


def _raise(error: OSError) -> NoReturn:
    raise error


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isascii() and label.removeprefix("-").isdigit()


def _numbered(names: list[str], classes: Mapping[str, int] | None, where: str) -> dict[str, int]:
    if classes is None:
        return {name: number for number, name in enumerate(names)}
    if unknown := [name for name in names if name not in classes]:
        raise ConfigError(f"{where} has classes that --classes does not number: {', '.join(unknown[:_MOST_NAMED])}")
    return dict(classes)


class _Keys:
    """Makes the keys: paths without their ending, as a tar can hold them, each once."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def make(self, path: PurePath) -> str:
        """Return a key that no path before got."""
        parts = [part for part in path.parts if part not in ("/", "..", ".")]
        parts[-1] = Path(parts[-1]).stem.replace(".", "_")  # a key ends at its first dot
        # Names that start with two underscores are a shard's own.
        first = "/".join(parts).lstrip("_.") or "_"
        key, number = first, 1
        while key in self._used:
            number += 1
            key = f"{first}-{number}"
        self._used.add(key)
        return key
