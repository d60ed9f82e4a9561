"""Where a command is to write a manifest, looked at before hours are spent on making it."""

from __future__ import annotations

from pathlib import Path

from shardfeed_wire.errors import ConfigError

__all__ = ["check_manifest_file"]


def check_manifest_file(option: str, path: Path) -> None:
    """Raise ConfigError, naming ``option``, where no manifest can be at ``path``, or one would replace something else.

    That something else is a shard, as a rule: ``index -o *.tar`` takes the first of them for the output.
    """
    from webdataset.manifest import is_manifest

    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; name a file, such as {path / 'train.manifest'}")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}; make it first")
    try:
        something_else = path.is_file() and path.stat().st_size > 0 and not is_manifest(path)
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}; name another file") from error
    if something_else:
        raise ConfigError(
            f"{option} {path} exists and is no manifest, which would take its place; name another file, or remove it"
        )
