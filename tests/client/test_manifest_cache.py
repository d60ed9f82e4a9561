"""The manifest that a client keeps on its disk: whole, or not at all."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from shardfeed.manifest_cache import cached_manifest, keep_manifest
from shardfeed_wire.messages import StreamInfo

INFO = StreamInfo(name="train", data="d0", recipe="r", samples=8, blocks=2, shards=1, columns=())
TENSORS = [
    np.array([4, 4], np.uint16),
    np.array([2], np.uint32),
    np.frombuffer(b"a.tar", np.uint8),
    np.array([0, 5], np.int64),
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "shardfeed" / "client"


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may have more than 100 bytes, that of pytest's output included: nothing else goes in the block."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_kept_is_there_the_next_time_for_a_stream_that_it_fits(cache: Path) -> None:
    assert cached_manifest(INFO) is None
    keep_manifest("d0", TENSORS)
    found = cached_manifest(INFO)
    assert found is not None
    assert (found.block_sizes.tolist(), found.shards) == ([4, 4], ("a.tar",))
    assert cached_manifest(msgspec.structs.replace(INFO, blocks=3)) is None
    assert [path.name for path in cache.iterdir()] == ["d0.ten"]


def test_a_full_disk_leaves_nothing_behind(cache: Path) -> None:
    with full_disk():
        keep_manifest("d0", TENSORS)
    assert cached_manifest(INFO) is None
    assert list(cache.iterdir()) == []
