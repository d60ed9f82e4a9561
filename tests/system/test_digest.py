"""The digest tells whether two clusters deliver the same, over any ranks, servers and restarts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shardfeed import RemoteDataset
from tests.photographs import Photographs
from tests.system.loaders import Loader, write_photographs

pytestmark = pytest.mark.xdist_group("digest")  # three servers for all

SAMPLES = 300
OPTIONS = ("--workers", "1")


@pytest.fixture(scope="module")
def shards(thumbnails: Photographs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photographs(tmp_path_factory.mktemp("digest"), thumbnails[:SAMPLES], count=5)


@pytest.fixture(scope="module")
def servers(shards: list[Path]) -> Iterator[list[str]]:
    with ExitStack() as stack:
        loaders = [stack.enter_context(Loader.of(shards, *OPTIONS, wait=False)) for _ in range(3)]
        for loader in loaders:
            loader.wait_ready()
        yield [loader.url for loader in loaders]


def digest(
    endpoints: list[str], batches: int | None = None, state: dict[str, Any] | None = None, **options: Any
) -> Any:
    """Read an epoch, or some batches of it; return the digest as a number, and the state."""
    with RemoteDataset(endpoints, **{"batch_size": 16, **options}) as dataset:
        if state is not None:
            dataset.load_state_dict(state)
        for number, _ in enumerate(dataset, start=1):
            if number == batches:
                break
        return int(dataset.digest, 16), dataset.state_dict()


@pytest.mark.parametrize("of", ["keys", "content"])
def test_it_is_the_same_over_ranks_servers_and_a_resume(servers: list[str], of: str) -> None:
    whole, _ = digest(servers[:1], digest=of)
    assert digest(servers, digest=of, batch_size=24)[0] == whole
    ranks = [digest(servers, digest=of, rank=rank, world_size=4, tail="pad")[0] for rank in range(4)]
    assert sum(ranks) % 2**128 == whole
    first, state = digest(servers, 5, digest=of)
    second, _ = digest(servers[1:], state=state, digest=of, batch_size=7)
    assert (first + second) % 2**128 == whole


def test_content_tells_recipes_apart_and_keys_do_not(servers: list[str], shards: list[Path]) -> None:
    with Loader.of(shards, "--resize", "16x16", "--workers", "1") as smaller:
        assert digest([smaller.url])[0] == digest(servers[:1])[0]
        assert digest([smaller.url], digest="content")[0] != digest(servers[:1], digest="content")[0]
    assert digest(servers[:1], seed=1)[0] != digest(servers[:1])[0]


def test_the_command_prints_it(servers: list[str]) -> None:
    def command(*arguments: str) -> str:
        line = [sys.executable, "-m", "shardfeed", "digest", *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=50).stdout.strip()

    with RemoteDataset(servers, batch_size=16) as dataset:
        for _ in dataset:
            pass
        assert command(servers[0], "--epoch", "0") == dataset.digest
        assert command(servers[1], "--epoch", "1") != dataset.digest
