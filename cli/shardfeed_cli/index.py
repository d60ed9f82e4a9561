"""`shardfeed index`: scan shards once and keep what was found as a manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardfeed_wire.errors import ConfigError

if TYPE_CHECKING:
    from webdataset.manifest import Manifest

__all__ = ["index"]


def index(
    shards: Annotated[
        list[str],
        typer.Argument(help="Shards: paths or URLs, braces expand; with --unpack also 'pipe:COMMAND'."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The manifest to write, such as train.manifest.")],
    exclude_bad: Annotated[
        bool, typer.Option("--exclude-bad", help="Leave bad shards out for good, and name them.")
    ] = False,
    block_bytes: Annotated[
        int | None, typer.Option(help="Bytes of shard that are shuffled as one.  [default: 4194304]")
    ] = None,
    scan: Annotated[
        bool, typer.Option("--scan", help="Read every header, even of shards that have a tar index (.idx) beside them.")
    ] = False,
    unpack: Annotated[
        Path | None, typer.Option(help="First write every shard to this folder as a plain tar, and index those.")
    ] = None,
) -> None:
    """Scan shards and write their manifest, so that servers start at once and agree on the data set."""
    import shardfeed_server  # noqa: F401 - says so where another package bears the name webdataset
    from shardfeed_cli.manifest_file import check_manifest_file
    from shardfeed_cli.progress import Meter
    from shardfeed_cli.unpack import unpack_shards
    from shardfeed_wire.endpoint import expand_braces
    from webdataset.indexing import index_shards
    from webdataset.manifest import BLOCK_BYTES

    paths = [path for text in shards for path in expand_braces(text)]
    check_manifest_file("-o", output)
    failures: dict[str, str] = {}
    by_tar_index: list[str] = []
    with Meter("shards") as meter:
        if unpack is not None:
            unpacked = unpack_shards(paths, unpack, lambda done, total: meter.show("unpacking", done, total))
            unpacked.check(exclude_bad=exclude_bad)
            paths, failures = unpacked.paths, unpacked.failures
        manifest = index_shards(
            paths,
            block_bytes=BLOCK_BYTES if block_bytes is None else block_bytes,
            exclude_bad=exclude_bad,
            progress=lambda done, total: meter.show("indexing", done, total),
            on_tar_index=None if scan else by_tar_index.append,
        )
    try:
        manifest.save(output)
    except OSError as error:
        raise ConfigError(f"-o {output} cannot be written: {error.strerror or error}; name another file") from error
    _report(manifest, failures, output)
    if by_tar_index:
        print(f"tar indexes (.idx) taken for {len(by_tar_index):,} shards: scanned, they have another fingerprint")


def _report(manifest: Manifest, failures: dict[str, str], output: Path) -> None:
    left_out = [f"shard {name}: {reason}" for name, reason in failures.items()]
    left_out += [excluded.reason for excluded in manifest.excluded]
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    print(f"{output}: {manifest.samples:,} samples in {len(manifest.names):,} shards below {manifest.root}")
    if left_out:
        print(f"left out as bad: {len(left_out):,} shards")
    print(f"fingerprint: {manifest.fingerprint}")
