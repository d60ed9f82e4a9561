"""Object stores, on obstore's stores in memory and on disk: what gs:// and az:// share with s3://."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import webdataset.objectrange
from shardfeed_wire.errors import ConfigError, ShardError
from webdataset.gopen import reader
from webdataset.indexing import index_shards
from webdataset.objectrange import open_store
from webdataset.remote import remote_root_of
from webdataset.shards import ShardReader


@pytest.fixture(params=["memory", "disk"])
def bucket(
    request: pytest.FixtureRequest,
    obstore: None,
    tars: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick: None,
) -> Iterator[Any]:
    """A bucket of the four shards under ``train/``; every bucket's URL leads to it."""
    from obstore.store import LocalStore, MemoryStore

    (tmp_path / "bucket").mkdir()
    store = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "bucket")
    for path, data in tars.items():
        store.put(f"train{path}", data)
    monkeypatch.setattr(webdataset.objectrange, "open_store", lambda url: store)
    return store


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_objects_are_indexed_and_read_as_files_are(bucket: Any, scheme: str, local: list[str]) -> None:
    manifest = index_shards([f"{scheme}://bucket/train/data/{number}.tar" for number in range(4)], block_bytes=100_000)
    near = index_shards(local, block_bytes=100_000)
    assert manifest.fingerprint == near.fingerprint
    assert manifest.root == f"{scheme}://bucket/train/data"
    with ShardReader(manifest) as afar, ShardReader(near) as here:
        afar.expect(range(100))
        for number in range(0, 100, 7):
            span = number // 25, int(manifest.starts[number]), int(manifest.lengths[number])
            assert afar.read(*span) == here.read(*span)


def test_an_object_that_changes_is_refused_and_one_that_is_missing_named(bucket: Any, tars: dict[str, bytes]) -> None:
    manifest = index_shards(["gs://bucket/train/data/0.tar"], block_bytes=100_000)
    with ShardReader(manifest) as afar:
        bucket.put("train/data/0.tar", tars["/data/0.tar"])
        with pytest.raises(ShardError, match=r"shard 0\.tar: gs://bucket/train/data/0\.tar: it changed"):
            afar.read(0, 0, 512)
    with pytest.raises(ShardError, match="no such object"):
        index_shards(["gs://bucket/gone.tar"])


def test_objects_open_as_streams(bucket: Any, tars: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webdataset.objectstream._WINDOW", 100_000)
    stream: Any = reader("az://bucket/train/data/2.tar")
    with stream:
        assert stream.read() == tars["/data/2.tar"]
    with pytest.raises(ShardError, match=r"az://bucket/none\.tar: there is no such object"):
        reader("az://bucket/none.tar")


def test_keys_are_taken_as_they_are() -> None:
    root, names = remote_root_of(["s3://b/a %20?/x.tar", "s3://b/a %20?/y/x.tar"])
    assert (root, names) == ("s3://b/a %20?", ["x.tar", "y/x.tar"])


def test_a_store_that_cannot_be_opened_is_an_error_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"az://container cannot be opened: .*Account must be specified"):
        open_store("az://container")


def test_without_credentials_it_is_said_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    error = webdataset.objectrange._import("s3://b").exceptions.GenericError(
        "Error performing PUT http://169.254.169.254/latest/api/token in 3ms\n\nDebug source: ..."
    )
    with (
        pytest.raises(ShardError, match="AWS_ACCESS_KEY_ID"),
        webdataset.objectrange._mapped(webdataset.objectrange._import("s3://b")),
    ):
        raise error
