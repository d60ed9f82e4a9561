"""Shards to be served from afar, and the settings that let failing be quick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import webdataset.remote
from tests.remote.range_server import RangeServer, served
from tests.webdataset.tars import numbered_files, tar_bytes


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no proxy of the machine's own stand between the tests and their servers."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once."""
    monkeypatch.setattr(webdataset.remote, "_FIRST_PAUSE", 0.001)


@pytest.fixture
def tars() -> dict[str, bytes]:
    """Four shards of 25 samples of about 20 kB, by their paths on a server."""
    return {
        f"/data/{number}.tar": tar_bytes(numbered_files(range(25 * number, 25 * number + 25), size=20_000))
        for number in range(4)
    }


@pytest.fixture
def server(tars: dict[str, bytes], quick: None) -> Iterator[RangeServer]:
    with served(files=dict(tars)) as state:
        yield state


@pytest.fixture(scope="session")
def obstore() -> None:
    """Start obstore's runtime, whose threads and descriptors stay, so that no test seems to leave them."""
    import obstore
    from obstore.store import MemoryStore

    store = MemoryStore()
    obstore.put(store, "x", b"x")
    obstore.get(store, "x").bytes()


@pytest.fixture
def local(tars: dict[str, bytes], tmp_path: Path) -> list[str]:
    """The same shards as files."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, data in tars.items():
        (folder / Path(name).name).write_bytes(data)
    return [str(folder / Path(name).name) for name in tars]
