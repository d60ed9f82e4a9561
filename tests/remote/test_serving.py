"""A server serves far shards as it serves files: the same epoch, and each block fetched once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from shardfeed import RemoteDataset
from shardfeed_server.config import ServerConfig, load_config, stream_from_options
from shardfeed_server.opening import open_manifest, share_cache
from shardfeed_wire.errors import ConfigError
from tests.cli.command import run
from tests.remote.range_server import RangeServer
from tests.system.loaders import Loader
from webdataset.manifest import Manifest

BLOCK = 100_000


def epoch(shards: Iterable[str], *options: str) -> tuple[str, int]:
    """Serve shards, run an epoch, and give its digest and how many rows came."""
    fixed = ("--fields", "cls", "--block-bytes", str(BLOCK), "--bind", "tcp://127.0.0.1:0")
    with Loader([*shards, *fixed, *options]) as loader, RemoteDataset(loader.url, batch_size=8, seed=3) as dataset:
        rows = sum(len(batch[0]) for batch in dataset)
        return dataset.digest, rows


@pytest.mark.timeout(120)
def test_an_epoch_from_afar_is_the_one_from_files_and_workers_share_what_they_fetch(
    server: RangeServer, local: list[str], tmp_path: Path
) -> None:
    urls = [f"{server.url}{path}?signature=secret" for path in sorted(server.files)]
    expected = epoch(local)
    assert expected[1] == 100
    server.sent = 0
    done = run("index", *urls, "-o", tmp_path / "train.manifest", "--block-bytes", str(BLOCK))
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stdout + done.stderr
    server.files["/train.manifest"] = (tmp_path / "train.manifest").read_bytes()
    before, server.sent = len(server.asked), 0
    assert epoch(urls, "--manifest", f"{server.url}/train.manifest", "--workers", "2") == expected
    whole = sum(len(data) for path, data in server.files.items() if path.startswith("/data"))
    manifest_bytes = len(server.files["/train.manifest"])
    assert server.sent <= whole + manifest_bytes + 8 * 512, "each block is fetched once, whichever worker wants it"
    blocks = len(Manifest.load(tmp_path / "train.manifest").block_sizes)
    asked = [each for each in server.asked[before:] if each[1] not in (None, "bytes=0-511")]
    assert len(asked) == blocks


def test_the_cache_is_divided_alike_and_no_stream_gets_more_than_it_has(
    server: RangeServer,
) -> None:
    paths = sorted(server.files)
    streams = {
        "train": stream_from_options([server.url + path for path in paths[1:]], fields="cls"),
        "val": stream_from_options([server.url + paths[0]], fields="cls"),
    }
    readers = [open_manifest(stream)[1] for stream in streams.values()]
    try:
        config = ServerConfig(streams=streams, cache_bytes=1_600_000)
        share_cache(readers, config)
        budgets = [reader.far.cache.budget for reader in readers if reader.far is not None]
        assert budgets[1] == readers[1].far.most_bytes  # type: ignore[union-attr]
        assert budgets[1] < 800_000
        assert sum(budgets) == 1_600_000
    finally:
        for reader in readers:
            reader.close()


def test_a_configuration_names_urls_and_a_folder_beside_it(tmp_path: Path) -> None:
    (tmp_path / "shardfeed.toml").write_text(
        'cache_dir = "cache"\n[streams.train]\nshards = "https://h/{0..1}.tar"\nfields = "cls"\n'
        'manifest = "https://h/m"\n'
    )
    config = load_config(tmp_path / "shardfeed.toml")
    assert config.cache_dir == str(tmp_path / "cache")
    assert config.streams["train"].shard_paths() == ["https://h/0.tar", "https://h/1.tar"]
    assert config.streams["train"].manifest == "https://h/m"


def test_a_url_where_no_manifest_lies_is_an_error_that_names_it(server: RangeServer) -> None:
    url = server.url + "/data/0.tar"
    server.files["/m"] = b"no manifest"
    for place, reason in ((f"{server.url}/m", "no use"), (f"{server.url}/gone?secret", "404")):
        stream = stream_from_options([url], fields="cls", manifest=place)
        with pytest.raises(ConfigError, match=reason) as caught:
            open_manifest(stream)
        assert "secret" not in str(caught.value)
