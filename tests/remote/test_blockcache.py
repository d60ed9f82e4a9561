"""The cache holds what it was given, within its bytes, whoever shares it and whoever dies meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shardfeed_wire.errors import ConfigError
from webdataset.blockcache import BlockCache
from webdataset.manifest import Manifest
from webdataset.tarindex import ShardIndex

BLOCKS, BLOCK = 40, 10_000
PAGES = 12_288


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Two shards of twenty blocks of one sample each; between the samples lies what belongs to none."""
    starts = np.arange(20, dtype=np.uint64) * np.uint64(BLOCK + 512)
    index = ShardIndex(20 * (BLOCK + 512), 1, bytes(16), starts, np.full(20, BLOCK, np.uint64))
    return Manifest.from_indexes(["0.tar", "1.tar"], [index, index], root="http://h", block_bytes=1)


@pytest.fixture(params=["memory", "folder"])
def pair(request: pytest.FixtureRequest, manifest: Manifest, tmp_path: Path) -> Iterator[tuple[BlockCache, BlockCache]]:
    """Two holders of one cache, or, in memory, one twice."""
    folder = tmp_path if request.param == "folder" else None
    one = BlockCache(manifest, 10 * PAGES, folder)
    two = one if folder is None else BlockCache(manifest, 10 * PAGES, folder)
    yield one, two
    one.close()
    two.close()


def content(block: int) -> bytes:
    return bytes([block + 1]) * BLOCK


def test_the_blocks_used_last_are_kept_within_the_bytes(pair: tuple[BlockCache, BlockCache]) -> None:
    one, two = pair
    for block in range(BLOCKS):
        assert one.get(block, 0, BLOCK) is None
        assert two.put(block, content(block))
        assert one.get(0, 100, 10) == content(0)[:10], "used all the time, so never let go"
        assert one.held == two.held <= 10 * PAGES
        assert one.occupied <= 10 * PAGES
    kept = [block for block in range(BLOCKS) if one.holds(block)]
    assert kept[0] == 0
    assert kept[1:] == list(range(BLOCKS - len(kept) + 1, BLOCKS))
    assert len(kept) >= 8
    assert all(one.get(block, 0, BLOCK) == content(block) for block in kept)


def test_what_is_no_block_and_what_is_too_large_is_not_kept(manifest: Manifest) -> None:
    cache = BlockCache(manifest, PAGES - 1)
    assert not cache.put(0, content(0))
    assert not cache.put(0, content(0)[:-1])
    assert cache.held == 0
    cache.close()


def test_only_one_fetches_a_block_and_a_wait_has_an_end(manifest: Manifest, tmp_path: Path) -> None:
    one, two = (BlockCache(manifest, 10 * PAGES, tmp_path) for _ in range(2))
    with one.claim(3, 1.0):
        began = time.monotonic()
        with two.claim(4, 1.0):
            assert time.monotonic() - began < 0.5
        with two.claim(3, 0.2):
            assert time.monotonic() - began >= 0.2
    began = time.monotonic()
    with two.claim(3, 1.0):
        assert time.monotonic() - began < 0.5
    one.close()
    two.close()


def die_while_keeping(cache: BlockCache, block: int) -> None:
    import webdataset.blockcache

    webdataset.blockcache._write = lambda *_: os._exit(9)
    with cache.claim(block, 1.0):
        cache.put(block, content(block))


def test_a_process_that_dies_while_it_keeps_a_block_holds_up_nobody(manifest: Manifest) -> None:
    cache = BlockCache(manifest, 10 * PAGES)
    process = multiprocessing.get_context("spawn").Process(target=die_while_keeping, args=(cache, 5))
    process.start()
    process.join(30)
    assert process.exitcode == 9
    process.close()
    assert cache.held == PAGES, "it is the same cache, and the bytes are counted"
    assert cache.get(5, 0, BLOCK) is None
    began = time.monotonic()
    with cache.claim(5, 5.0):
        assert cache.put(5, content(5))
    assert time.monotonic() - began < 1
    assert cache.get(5, 0, BLOCK) == content(5)
    assert cache.held == PAGES
    cache.close()


def test_caches_of_other_data_sets_that_nobody_uses_are_removed(manifest: Manifest, tmp_path: Path) -> None:
    used = BlockCache(manifest, 10 * PAGES, tmp_path, "1")
    BlockCache(manifest, 10 * PAGES, tmp_path, "2").close()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table").write_text("not a cache")
    new = BlockCache(manifest, 10 * PAGES, tmp_path, "3")
    assert sorted(path.name.split("-")[2] for path in tmp_path.glob("shardfeed-*")) == ["1", "3"]
    assert (tmp_path / "mine" / "table").exists()
    used.close()
    new.close()


def test_a_folder_that_cannot_be_used_is_named(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cache_dir .*/file/cache: Not a directory"):
        BlockCache(manifest, PAGES, tmp_path / "file" / "cache")
