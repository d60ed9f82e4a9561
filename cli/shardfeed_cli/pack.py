"""`shardfeed pack`: files with labels to shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardfeed_wire.errors import ConfigError

if TYPE_CHECKING:
    from shardfeed_cli.sources import Item, Source

__all__ = ["pack"]

_CLASSES = "classes.json"


def pack(
    source: Annotated[
        Path, typer.Argument(help="A folder with one sub-folder a class, or a list: lines of PATH, a tab, LABEL.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="The shards to write, such as 'out/train-%06d.tar'.")],
    seed: Annotated[int, typer.Option(min=0, max=(1 << 64) - 1, help="Of the order in which samples are packed.")] = 0,
    maxcount: Annotated[int, typer.Option(min=1, help="Samples a shard, at most.")] = 10_000,
    maxsize: Annotated[float, typer.Option(min=1, help="Bytes a shard, at most.")] = 1e9,
    ext: Annotated[
        list[str] | None,
        typer.Option(help="Ending of files to pack from a folder; repeatable.  [default: those of pictures]"),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Number the classes as this classes.json says, as for another split.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="Also write the manifest, as `shardfeed index` would.")] = None,
) -> None:
    """Pack files with labels into shards, shuffled by the seed first; names of classes go to classes.json beside."""
    import shardfeed_server  # noqa: F401 - says so where another package bears the name webdataset
    from shardfeed_cli.manifest_file import check_manifest_file
    from shardfeed_cli.sources import EXTENSIONS, read_folder, read_list

    folder = Path(output).parent
    _check_pattern(output)
    numbers = None if classes is None else _read_classes(classes)
    try:
        if source.is_dir():
            found = read_folder(source, ext or EXTENSIONS, numbers)
        elif source.is_file():
            found = read_list(source, numbers)
        else:
            raise ConfigError(f"{source} is neither a folder nor a list; give a folder with one sub-folder a class")
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_to_mix(folder, output, found)
        if manifest is not None:
            check_manifest_file("--manifest", manifest)
        shards = _write(found.items, output, seed, maxcount, maxsize, manifest)
        if found.classes:
            (folder / _CLASSES).write_text(
                json.dumps(found.classes, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
    except OSError as error:
        raise ConfigError(f"{error.filename or output}: {error.strerror or error}; correct it, pack again") from error
    _report(found, shards, folder)


def _write(
    items: list[Item], pattern: str, seed: int, maxcount: int, maxsize: float, manifest: Path | None
) -> list[str]:
    from shardfeed_cli.progress import Meter
    from shardfeed_wire.philox import Purpose, permutation, philox
    from webdataset.writer import ShardWriter

    shards: list[str] = []
    order = permutation(philox(seed, 0, 0, Purpose.BLOCK_ORDER), len(items)).tolist()
    # With one time for all, equal files and an equal seed make equal shards.
    writer = ShardWriter(pattern, maxcount, maxsize, shards.append, manifest=manifest, encoder=False, mtime=0)
    with Meter("samples") as meter, writer:
        for done, number in enumerate(order, start=1):
            item = items[number]
            writer.write({"__key__": item.key, item.field: item.path.read_bytes(), "cls": str(item.label).encode()})
            meter.show("packing", done, len(items))
    return shards


def _check_pattern(pattern: str) -> None:
    try:
        different = pattern % 0 != pattern % 1
    except (TypeError, ValueError):
        different = False
    if not different:
        raise ConfigError(f"-o {pattern!r} needs one number in it; write it as in 'out/train-%06d.tar'")


def _refuse_to_mix(folder: Path, pattern: str, found: Source) -> None:
    """Raise ConfigError where earlier shards would be left among the new ones, or a split be numbered otherwise."""
    if Path(pattern % 0).exists():
        raise ConfigError(f"{pattern % 0} exists; remove the earlier shards, or choose another -o")
    beside = folder / _CLASSES
    if found.classes and beside.exists() and _read_classes(beside) != found.classes:
        raise ConfigError(f"{beside} numbers the classes otherwise; pass --classes {beside} to number them alike")


def _read_classes(file: Path) -> dict[str, int]:
    import msgspec

    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, int])
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; give a classes.json that `pack` wrote") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f'{file} must be JSON such as {{"cat": 0, "dog": 1}}: {error}') from error


def _report(found: Source, shards: list[str], folder: Path) -> None:
    print(f"{shards[0]} .. {shards[-1]}: {len(found.items):,} samples in {len(shards):,} shards")
    fields = sorted({item.field for item in found.items})
    print(f"fields: {' '.join(fields)} cls (read with --fields '{';'.join(fields)} cls')")
    if found.classes:
        print(f"classes: {len(found.classes):,}, numbered in {folder / _CLASSES}")
    if found.ignored:
        print(f"left out: {found.ignored:,} files with other endings")
