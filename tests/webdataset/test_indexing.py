"""Shards are indexed in order whatever scans them, every bad one is named, and the cache never lies."""

from __future__ import annotations

import gzip
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import webdataset.indexing
from shardfeed_wire.errors import ConfigError, ShardError
from tests.webdataset.tars import numbered_files, tar_bytes, write_tar
from webdataset.indexing import cache_folder, cached_manifest, index_shards
from webdataset.manifest import Manifest


def good_shards(folder: Path, count: int = 4) -> list[str]:
    """Write shards of 5 samples each."""
    return [
        write_tar(folder / f"{number}.tar", numbered_files(range(5 * number, 5 * number + 5)))
        for number in range(count)
    ]


def test_processes_give_the_same_manifest_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = good_shards(tmp_path, 6)
    alone = index_shards(paths, jobs=1)
    monkeypatch.setattr(webdataset.indexing, "_SECONDS_ALONE", -1.0)
    assert index_shards(paths, jobs=2).fingerprint == alone.fingerprint
    assert alone.names == tuple(f"{number}.tar" for number in range(6))


def test_progress_is_told_after_every_shard(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    index_shards(good_shards(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def bad_shards(folder: Path) -> dict[str, str]:
    """Write one shard of each kind of bad, and say what its message must hold."""
    whole = tar_bytes(numbered_files(range(3)))
    (folder / "empty.tar").write_bytes(b"")
    (folder / "cut.tar").write_bytes(whole[:1300])
    (folder / "endless.tar").write_bytes(whole.rstrip(b"\0")[: 512 * 10].ljust(512 * 11, b"\0")[: 512 * 4])
    (folder / "text.tar").write_bytes(b"this is no tar\n" * 100)
    (folder / "packed.tar").write_bytes(gzip.compress(whole))
    (folder / "nothing.tar").write_bytes(tar_bytes([("README", b"no extension")]))
    (folder / "folder.tar").mkdir()
    return {
        "missing.tar": "No such file",
        "empty.tar": "empty",
        "cut.tar": "truncated: it ends at byte 1300",
        "endless.tar": "truncated: it ends at byte 2048",
        "text.tar": "not a tar",
        "packed.tar": "gzip-compressed.*`shardfeed index --unpack DIR`",
        "nothing.tar": "holds no samples",
        "folder.tar": "Is a directory",
    }


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_bad_shard_is_named_with_its_reason_in_one_message(tmp_path: Path, jobs: int) -> None:
    expected = bad_shards(tmp_path)
    paths = [*good_shards(tmp_path), *(str(tmp_path / name) for name in expected)]
    with pytest.raises(ShardError, match="8 of 12 shards are bad") as caught:
        index_shards(paths, jobs=jobs)
    for name, reason in expected.items():
        assert re.search(f"shard {name}: .*{reason}", str(caught.value))
    assert caught.value.shard is None


def test_one_bad_shard_is_the_errors_shard(tmp_path: Path) -> None:
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(ShardError, match="--exclude-bad") as caught:
        index_shards([*good_shards(tmp_path), tmp_path / "empty.tar"])
    assert caught.value.shard == "empty.tar"


@pytest.mark.parametrize(("shard", "advice"), [("", "name the tars in it"), ("*.tar", "only braces expand here")])
def test_what_is_often_written_by_mistake_is_answered_with_what_to_write(
    tmp_path: Path, shard: str, advice: str
) -> None:
    with pytest.raises(ShardError, match=advice):
        index_shards([tmp_path / shard])


def test_bad_shards_are_left_out_for_good_where_asked(tmp_path: Path) -> None:
    expected = bad_shards(tmp_path)
    good = good_shards(tmp_path)
    manifest = index_shards([*(str(tmp_path / name) for name in expected), *good], exclude_bad=True)
    assert manifest.names == ("0.tar", "1.tar", "2.tar", "3.tar")
    assert [excluded.name for excluded in manifest.excluded] == list(expected)
    assert "empty" in manifest.excluded[1].reason
    manifest.save(tmp_path / "m.ten")
    assert Manifest.load(tmp_path / "m.ten").excluded == manifest.excluded
    assert manifest.fingerprint == index_shards(good).fingerprint


def test_leaving_all_shards_out_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of the 1 shards is good"):
        index_shards([tmp_path / "missing.tar"], exclude_bad=True)


@pytest.mark.parametrize("url", ["ftp://host/x.tar", "pipe:cat x.tar", "-"])
def test_what_cannot_be_read_at_random_is_refused_with_the_way_out(url: str) -> None:
    with pytest.raises(ShardError, match="shardfeed index --unpack DIR"):
        index_shards([url])


@pytest.mark.parametrize("index", [index_shards, cached_manifest])
@pytest.mark.parametrize("place", [b"gr\xfcn.tar", b"gr\xfcn/a.tar"])
def test_a_path_that_is_not_utf_8_is_refused_by_name(
    tmp_path: Path, index: Callable[..., Manifest], place: bytes
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + place))
    path.parent.mkdir(exist_ok=True)
    write_tar(path, numbered_files(range(3)))
    with pytest.raises(ShardError, match=r"gr\\udcfcn.*not UTF-8, .* rename it"):
        index([str(path)])


def test_no_shards_and_shards_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no shards"):
        index_shards([])
    path = good_shards(tmp_path)[0]
    with pytest.raises(ConfigError, match=r"given twice: 0\.tar"):
        index_shards([path, str(tmp_path / "." / "0.tar")])


def test_a_cached_manifest_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = good_shards(tmp_path / "data")
    first = cached_manifest(paths, folder=tmp_path / "cache")
    monkeypatch.setattr(webdataset.indexing, "index_shard", None)
    assert cached_manifest(paths, folder=tmp_path / "cache").fingerprint == first.fingerprint


def test_a_changed_shard_another_cut_and_a_broken_entry_are_indexed_again(tmp_path: Path) -> None:
    paths = good_shards(tmp_path / "data")
    cache = tmp_path / "cache"
    first = cached_manifest(paths, folder=cache)
    (entry,) = cache.iterdir()
    entry.write_bytes(entry.read_bytes()[:1000])
    assert cached_manifest(paths, folder=cache).fingerprint == first.fingerprint
    assert Manifest.load(entry).fingerprint == first.fingerprint
    assert len(cached_manifest(paths, block_bytes=1, folder=cache).block_sizes) == 20
    write_tar(Path(paths[0]), numbered_files(range(50, 57)))
    os.utime(paths[0], ns=(0, time.time_ns() + 10**9))
    assert cached_manifest(paths, folder=cache).samples == 22


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert cached_manifest(good_shards(tmp_path / "data"), folder=tmp_path / "file" / "cache").samples == 20


def test_without_a_home_to_keep_it_in_the_manifest_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(nobody))
    assert cached_manifest(good_shards(tmp_path)).samples == 20
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        cache_folder()


def test_the_cache_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_folder() == Path("/var/cache/me/shardfeed/manifests")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache/shardfeed/manifests"
