"""Shards on an HTTP server are indexed and read as they are on disk, or it is said why not."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import webdataset.remote
import webdataset.remoteblocks
from shardfeed_wire.errors import ConfigError, ShardError
from tests.remote.range_server import RangeServer, served
from tests.webdataset.tars import numbered_files, tar_bytes
from webdataset.indexing import cached_manifest, index_shards
from webdataset.manifest import Manifest
from webdataset.samples import read_sample
from webdataset.shards import ShardReader

BLOCK = 100_000


def urls_of(server: RangeServer, query: str = "") -> list[str]:
    return [f"{server.url}{path}{query}" for path in sorted(server.files)]


@pytest.fixture
def manifest(server: RangeServer) -> Manifest:
    return index_shards(urls_of(server), block_bytes=BLOCK)


@pytest.fixture
def reader(manifest: Manifest) -> Iterator[ShardReader]:
    with ShardReader(manifest) as reader:
        yield reader


def samples_of(reader: ShardReader, manifest: Manifest, which: range | None = None) -> list[bytes]:
    """Read samples as a server does: announced first."""
    numbers = range(manifest.samples) if which is None else which
    reader.expect(numbers)
    blocks = [int(manifest.block_first.searchsorted(number, side="right")) - 1 for number in numbers]
    return [
        reader.read(int(manifest.block_shard[block]), int(manifest.starts[number]), int(manifest.lengths[number]))
        for block, number in zip(blocks, numbers, strict=True)
    ]


def test_an_index_made_from_afar_is_the_one_made_from_the_files(manifest: Manifest, local: list[str]) -> None:
    near = index_shards(local, block_bytes=BLOCK)
    assert manifest.fingerprint == near.fingerprint
    assert manifest.names == near.names
    assert (manifest.starts == near.starts).all()


def test_every_sample_arrives_as_it_lies_in_the_file(
    reader: ShardReader, manifest: Manifest, local: list[str], server: RangeServer
) -> None:
    with ShardReader(index_shards(local, block_bytes=BLOCK)) as near:
        assert samples_of(reader, manifest) == samples_of(near, manifest)
    assert reader.far is not None
    traffic = reader.far.traffic
    assert traffic.fetched == len(manifest.block_sizes)
    assert traffic.hits + traffic.misses == manifest.samples
    assert traffic.misses <= len(manifest.block_sizes)
    before = len(server.asked)
    samples_of(reader, manifest)
    assert len(server.asked) == before, "the second time all comes from the cache"


@pytest.mark.parametrize("cache_bytes", [1000, 1 << 30], ids=["none is kept", "all are kept"])
def test_samples_are_read_into_memory_of_the_caller_as_they_lie_in_the_file(
    reader: ShardReader, manifest: Manifest, cache_bytes: int
) -> None:
    assert reader.far is not None
    reader.far.set_cache(cache_bytes, None, 10.0)
    expected = samples_of(reader, manifest, range(0, 100, 9))
    for _ in range(2):  # fetched, or of the cache
        for number, data in zip(range(0, 100, 9), expected, strict=True):
            block = int(manifest.block_first.searchsorted(number, side="right")) - 1
            shard, start = int(manifest.block_shard[block]), int(manifest.starts[number])
            parts = bytearray(512), np.zeros((2, 3, 5), np.uint16), np.zeros((0, 4)), bytearray(len(data) - 572)
            assert reader.read_into(shard, start, len(data), parts)
            assert b"".join(part.tobytes() if isinstance(part, np.ndarray) else part for part in parts) == data


def test_blocks_are_fetched_several_at_a_time_over_few_connections(
    reader: ShardReader, manifest: Manifest, server: RangeServer
) -> None:
    server.delay, server.most_at_once, server.connections = 0.02, 0, 0
    samples_of(reader, manifest)
    assert 2 <= server.most_at_once <= webdataset.remoteblocks.CONNECTIONS
    assert server.connections <= webdataset.remoteblocks.CONNECTIONS


def test_a_small_cache_is_never_exceeded_and_all_still_arrives(
    reader: ShardReader, manifest: Manifest, tars: dict[str, bytes]
) -> None:
    assert reader.far is not None
    reader.far.set_cache(3 * BLOCK, None, 10.0)
    cache = reader.far.cache
    for start in range(0, manifest.samples, 5):
        samples_of(reader, manifest, range(start, start + 5))
        assert cache.held <= 3 * BLOCK
        assert cache.occupied <= 3 * BLOCK + 65_536
    assert cache.held > 0
    found = samples_of(reader, manifest)
    assert [read_sample(data)["__key__"] for data in found] == [f"{number:06d}" for number in range(100)]


def test_a_cache_smaller_than_a_block_holds_nothing_and_all_still_arrives(
    reader: ShardReader, manifest: Manifest
) -> None:
    assert reader.far is not None
    reader.far.set_cache(1000, None, 10.0)
    assert len(samples_of(reader, manifest, range(12))) == 12
    assert reader.far.cache.held == 0


def test_a_cache_in_a_folder_serves_the_next_reader_too(
    manifest: Manifest, server: RangeServer, tmp_path: Path
) -> None:
    with ShardReader(manifest) as first:
        assert first.far is not None
        first.far.set_cache(1 << 30, tmp_path / "cache", 10.0)
        expected = samples_of(first, manifest)
    server.asked.clear()
    with ShardReader(manifest) as second:
        assert second.far is not None
        second.far.set_cache(1 << 30, tmp_path / "cache", 10.0)
        server.asked.clear()
        assert samples_of(second, manifest) == expected
        assert not server.asked


def test_a_reader_that_is_copied_reads_with_a_cache_of_its_own(reader: ShardReader, manifest: Manifest) -> None:
    with pickle.loads(pickle.dumps(reader)) as copy:
        assert samples_of(copy, manifest) == samples_of(reader, manifest)


# ------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("taken_at_once", [30_000, 64 << 20], ids=["memory grows", "memory is there"])
def test_broken_transfers_are_resumed_where_they_broke(
    reader: ShardReader,
    manifest: Manifest,
    server: RangeServer,
    local: list[str],
    taken_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webdataset.remote, "_TAKEN_AT_ONCE", taken_at_once)
    server.asked.clear()
    server.breaks = [70_000, 10, 0, 50_000]
    found = samples_of(reader, manifest, range(5))
    assert not server.breaks
    with ShardReader(index_shards(local, block_bytes=BLOCK)) as near:
        assert found == samples_of(near, manifest, range(5))
    assert any(asked and asked.startswith("bytes=70000-") for _, asked in server.asked)


def test_a_busy_server_is_asked_again(reader: ShardReader, manifest: Manifest, server: RangeServer) -> None:
    server.statuses = [503, 429, 500, 502]
    assert len(samples_of(reader, manifest, range(5))) == 5
    assert not server.statuses


def test_a_server_that_stays_busy_is_given_up_with_url_and_status(
    reader: ShardReader, manifest: Manifest, server: RangeServer
) -> None:
    server.statuses = [503] * 1000
    with pytest.raises(ShardError, match=r"shard 0\.tar: http://.*/data/0\.tar: HTTP status 503.*8 times") as caught:
        samples_of(reader, manifest, range(1))
    assert caught.value.shard == "0.tar"


def test_a_silent_server_is_given_up_in_time(reader: ShardReader, manifest: Manifest, server: RangeServer) -> None:
    assert reader.far is not None
    reader.far.set_cache(1 << 20, None, 0.9)
    server.delay = 1.5
    with pytest.raises(ShardError, match=r"silent for too long.*within 0\.6 s"):
        samples_of(reader, manifest, range(1))


@pytest.mark.parametrize("honoured", [True, False])
def test_a_shard_that_changes_while_it_is_served_is_refused(
    reader: ShardReader, manifest: Manifest, server: RangeServer, honoured: bool
) -> None:
    samples_of(reader, manifest, range(3))
    server.honours_if_match = honoured
    server.files["/data/0.tar"] = server.files["/data/0.tar"].replace(b"\1" * 1000, b"\2" * 1000)
    assert len(samples_of(reader, manifest, range(3))) == 3, "what was fetched before is the shard that was indexed"
    with pytest.raises(ShardError, match=r"shard 0\.tar: .*it changed since it was opened.*`shardfeed index`"):
        samples_of(reader, manifest, range(20, 21))
    assert len(samples_of(reader, manifest, range(25, 26))) == 1, "the other shards are still read"


def test_a_shard_of_another_size_or_other_samples_is_refused_at_the_start(
    manifest: Manifest, server: RangeServer
) -> None:
    whole = server.files["/data/1.tar"]
    server.files["/data/1.tar"] = whole + bytes(512)
    with pytest.raises(ShardError, match=r"shard 1\.tar: .*bytes, not"):
        ShardReader(manifest)
    other = tar_bytes(numbered_files(range(24), size=20_000))
    server.files["/data/1.tar"] = other.ljust(len(whole), b"\0")[: len(whole)]
    with pytest.raises(ShardError, match=r"shard 1\.tar: .*no sample at byte"):
        ShardReader(manifest)


def test_a_copy_with_another_etag_is_accepted(manifest: Manifest, tars: dict[str, bytes]) -> None:
    with served(files=tars, etags=False) as mirror, ShardReader(manifest, f"{mirror.url}/data") as reader:
        assert len(samples_of(reader, manifest)) == 100


def test_a_server_without_ranges_is_named_with_the_way_out(server: RangeServer) -> None:
    server.ranges = False
    with pytest.raises(ShardError, match=r"(?s)4 of 4 shards.*no byte ranges.*`shardfeed index --unpack DIR`"):
        index_shards(urls_of(server))


def test_bad_shards_are_named_with_their_reasons(server: RangeServer) -> None:
    good = server.files["/data/0.tar"]
    server.files["/data/1.tar"] = b""
    server.files["/data/2.tar"] = good[: len(good) // 2]
    server.files["/data/3.tar"] = b"\x1f\x8b" + bytes(5000)
    server.files["/data/4.tar"] = b"no tar\n" * 100
    with pytest.raises(ShardError, match="5 of 6 shards are bad") as caught:
        index_shards([*urls_of(server), f"{server.url}/data/gone.tar"])
    said = str(caught.value)
    for reason in (
        "1.tar: .*empty",
        "2.tar: .*truncated",
        "3.tar: .*gzip.*--unpack",
        "4.tar: .*not a tar",
        "gone.*404",
    ):
        assert pytest.importorskip("re").search(reason, said), said
    manifest = index_shards([*urls_of(server), f"{server.url}/data/gone.tar"], exclude_bad=True)
    assert manifest.names == ("0.tar",)
    assert len(manifest.excluded) == 5


def test_nobody_listening_and_an_unknown_name_are_errors(quick: None) -> None:
    with pytest.raises(ShardError, match="refused"):
        index_shards(["http://127.0.0.1:1/x.tar"])
    with pytest.raises(ShardError, match=r"cannot be resolved"):
        index_shards(["http://host.invalid/x.tar"])


# --------------------------------------------------------------------------------- how much is read


def test_the_data_of_large_members_is_never_fetched_to_index_them(quick: None) -> None:
    tar = tar_bytes(numbered_files(range(20), size=300_000))
    with served(files={"/0.tar": tar}) as server:
        index_shards([f"{server.url}/0.tar"])
        assert server.sent < len(tar) // 20
        assert len(server.asked) <= 22, "one request for a sample"


def test_small_members_are_indexed_by_few_requests(server: RangeServer) -> None:
    index_shards(urls_of(server)[:1])
    assert len(server.asked) <= 4


def test_a_manifest_that_is_cached_is_not_made_again_until_a_shard_changes(server: RangeServer, tmp_path: Path) -> None:
    first = cached_manifest(urls_of(server), folder=tmp_path)
    server.asked.clear()
    assert cached_manifest(urls_of(server), folder=tmp_path).fingerprint == first.fingerprint
    assert {asked for _, asked in server.asked} == {"bytes=0-511"}
    server.files["/data/0.tar"] = tar_bytes(numbered_files(range(7)))
    assert cached_manifest(urls_of(server), folder=tmp_path).samples == 82


# ------------------------------------------------------------------------------------- names, secrets


def test_signatures_and_passwords_appear_nowhere(server: RangeServer, tmp_path: Path) -> None:
    server.password = "Basic " + base64.b64encode(b"me:hush").decode()
    urls = [url.replace("http://", "http://me:hush@") for url in urls_of(server, "?signature=secret")]
    manifest = index_shards(urls)
    assert all(path.endswith("?signature=secret") for path, _ in server.asked)
    manifest.save(tmp_path / "m.ten")
    written = (tmp_path / "m.ten").read_bytes()
    assert b"secret" not in written
    assert b"hush" not in written
    assert manifest.root == f"{server.url}/data"
    named = dict(zip(manifest.names, urls, strict=True))
    with ShardReader(manifest, urls=named) as reader:
        assert len(samples_of(reader, manifest)) == 100
        server.files["/data/1.tar"] += b"x"
        with pytest.raises(ShardError) as caught:
            ShardReader(manifest, urls=named)
    assert "secret" not in str(caught.value)
    assert "hush" not in str(caught.value)
    with pytest.raises(ShardError, match="HTTP status 401"):
        ShardReader(manifest)


def test_names_are_paths_below_the_common_url_as_on_disk(server: RangeServer) -> None:
    server.files = {f"/d/{name}.tar": server.files["/data/0.tar"] for name in ("a%20b/0", "c/0")}
    manifest = index_shards(urls_of(server))
    assert manifest.names == ("a b/0.tar", "c/0.tar")
    assert manifest.root == f"{server.url}/d"
    with ShardReader(manifest) as reader:
        assert len(samples_of(reader, manifest)) == 50


def test_shards_of_several_servers_and_half_of_them_files_are_refused(local: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"several servers: http://a, http://b"):
        index_shards(["http://a/0.tar", "http://b/0.tar"])
    with pytest.raises(ConfigError, match="some shards are URLs"):
        index_shards(["http://a/0.tar", local[0]])
    with pytest.raises(ConfigError, match=r"given twice: 0\.tar"):
        index_shards(["http://a/0.tar?x", "http://a/0.tar?y"])


# ------------------------------------------------------------------------------- on the way there


def test_redirections_are_followed(server: RangeServer) -> None:
    server.redirect_to = f"{server.url}/moved"
    assert index_shards(urls_of(server)).samples == 100
    server.redirect_to = "file:///etc"
    with pytest.raises(ShardError, match="no HTTP URL"):
        index_shards(urls_of(server))


def test_a_proxy_of_the_environment_is_used(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    assert index_shards([f"http://far.invalid{path}" for path in sorted(server.files)]).samples == 100


def test_a_server_that_dribbles_is_given_up_in_time(server: RangeServer, manifest: Manifest) -> None:
    server.dribble = 0.05
    with ShardReader(manifest) as reader:
        assert reader.far is not None
        reader.far.set_cache(1 << 20, None, 0.75)
        with pytest.raises(ShardError, match=r"comes too slowly: \d+ of \d+ bytes \(within 0\.5 s\)"):
            reader.read(0, 0, 512)
    server.dribble = 0.0
