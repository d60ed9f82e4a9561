"""Samples are numbered in order, cut into blocks, found again by bytes, and a manifest that is not whole is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfeed_wire.errors import ConfigError
from shardfeed_wire.tenbin import decode_buffer, encode_buffer
from tests.webdataset.tars import numbered_files, read_by_tarfile, write_tar
from webdataset.indexing import index_shards
from webdataset.keys import base_plus_ext
from webdataset.manifest import BLOCK_SAMPLES, Manifest, cut_blocks
from webdataset.remotemanifest import load_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Two shards of 30 and 12 samples, blocks of about 10 kB."""
    paths = [
        write_tar(tmp_path / "data" / "a" / "x.tar", numbered_files(range(30))),
        write_tar(tmp_path / "data" / "b" / "x.tar", numbered_files(range(30, 42))),
    ]
    return index_shards(paths, block_bytes=10_000)


def test_shards_are_named_relative_to_their_common_folder(manifest: Manifest, tmp_path: Path) -> None:
    assert manifest.names == ("a/x.tar", "b/x.tar")
    assert manifest.root == str(tmp_path / "data")
    assert manifest.path(1) == str(tmp_path / "data" / "b" / "x.tar")
    assert manifest.path(1, "/elsewhere") == "/elsewhere/b/x.tar"


def test_one_shard_is_named_by_its_file(tmp_path: Path) -> None:
    assert index_shards([write_tar(tmp_path / "only.tar", numbered_files(range(2)))]).names == ("only.tar",)


def test_blocks_hold_all_samples_in_order_and_none_crosses_a_shard(manifest: Manifest) -> None:
    assert manifest.samples == 42
    assert manifest.shard_samples.tolist() == [30, 12]
    assert manifest.block_sizes.dtype == np.uint16
    assert manifest.block_sizes.sum() == 42
    assert manifest.block_first.tolist() == [0, *np.cumsum(manifest.block_sizes)[:-1].tolist()]
    assert 30 in manifest.block_first
    assert manifest.block_shard.tolist() == [int(first >= 30) for first in manifest.block_first]


def test_every_sample_is_found_where_its_files_are(manifest: Manifest) -> None:
    block = np.repeat(np.arange(len(manifest.block_sizes)), manifest.block_sizes)
    index = np.concatenate([np.arange(size) for size in manifest.block_sizes])
    assert manifest.sample_number(block, index).tolist() == list(range(42))
    shards, starts, lengths = manifest.locate(block, index)
    for number in range(42):
        data = Path(manifest.path(int(shards[number]))).read_bytes()
        part = data[int(starts[number]) :][: int(lengths[number])]
        assert read_by_tarfile(part + bytes(1024)) == numbered_files([number])


@pytest.mark.parametrize(("block", "index"), [(0, 10**6), (0, -1), (-1, 0), (10**6, 0), (0, 65_535)])
def test_a_sample_that_does_not_exist_is_an_index_error(manifest: Manifest, block: int, index: int) -> None:
    with pytest.raises(IndexError):
        manifest.locate(np.array([0, block]), np.array([0, index]))


def test_no_samples_are_found_at_once(manifest: Manifest) -> None:
    shards, starts, lengths = manifest.locate(np.array([], dtype=int), np.array([], dtype=int))
    assert len(shards) == len(starts) == len(lengths) == 0


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.integers(1, 20_000))
def test_a_block_ends_with_the_sample_by_which_its_bytes_reach_the_limit(lengths: list[int], limit: int) -> None:
    sizes = cut_blocks(np.array(lengths, dtype=np.uint64), limit)
    assert sizes.sum() == len(lengths)
    at = 0
    for size in sizes.tolist():
        block = lengths[at : at + size]
        at += size
        assert sum(block[:-1]) < limit
        assert sum(block) >= limit or at == len(lengths)


def test_a_block_ends_with_its_4096th_sample() -> None:
    sizes = cut_blocks(np.ones(2 * BLOCK_SAMPLES + 1, dtype=np.uint64), 1 << 40)
    assert sizes.tolist() == [4096, 4096, 1]
    assert cut_blocks(np.ones(3, dtype=np.uint64), 1 << 80).tolist() == [3]


names = st.lists(st.sampled_from(["a", "b", "d/a"]), max_size=12).flatmap(
    lambda keys: st.tuples(
        *[st.sampled_from([f"{key}.x", f"{key}.y", key, "__meta__", f"d/.{key[-1]}"]) for key in keys]
    )
)


@given(names=names, tar_format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT]), long=st.booleans())
def test_samples_are_runs_of_files_with_one_key_as_told_by_tarfile(
    tmp_path_factory: pytest.TempPathFactory, names: tuple[str, ...], tar_format: int, long: bool
) -> None:
    prefix = ("p" * 90 + "/") * 2 if long else ""
    path = tmp_path_factory.mktemp("grouped") / "x.tar"
    data = Path(
        write_tar(path, [("first.x", b"1"), *((prefix + name, name.encode()) for name in names)], tar_format)
    ).read_bytes()
    expected: list[tuple[str, list[tuple[str, bytes]]]] = []
    for name, content in read_by_tarfile(data):
        key, _ = base_plus_ext(name)
        if key is None:
            continue
        if not expected or expected[-1][0] != key:
            expected.append((key, []))
        expected[-1][1].append((name, content))
    manifest = index_shards([path])
    assert manifest.samples == len(expected)
    for start, length, (_, files) in zip(manifest.starts.tolist(), manifest.lengths.tolist(), expected, strict=True):
        part = read_by_tarfile(data[start : start + length] + bytes(1024))
        assert [file for file in part if base_plus_ext(file[0])[0] is not None] == files


def test_a_saved_manifest_loads_equal(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "train.manifest")
    loaded = Manifest.load(tmp_path / "train.manifest")
    assert loaded.fingerprint == manifest.fingerprint
    assert (loaded.names, loaded.root, loaded.block_bytes) == (manifest.names, manifest.root, manifest.block_bytes)
    for name in ("sizes", "mtimes", "digests", "shard_samples", "block_sizes", "starts", "lengths", "block_shard"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(manifest, name))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["train.manifest"]


def test_a_manifest_is_readable_by_others_as_the_mask_allows(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "train.manifest")
    (tmp_path / "plain").touch()
    assert (tmp_path / "train.manifest").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_write_that_fails_leaves_the_old_manifest(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "train.manifest").mkdir()
    with pytest.raises(OSError, match=r"train\.manifest"):
        manifest.save(tmp_path / "train.manifest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "train.manifest"]


def test_the_fingerprint_is_the_same_for_a_copy_and_another_for_other_data(tmp_path: Path) -> None:
    files = numbered_files(range(10))
    one = index_shards([write_tar(tmp_path / "one" / "x.tar", files)])
    copy = index_shards([write_tar(tmp_path / "two" / "x.tar", files)])
    assert copy.fingerprint == one.fingerprint
    others = [
        index_shards([write_tar(tmp_path / "three" / "x.tar", numbered_files(range(1, 11)))]),
        index_shards([write_tar(tmp_path / "four" / "y.tar", files)]),
        index_shards([write_tar(tmp_path / "five" / "x.tar", files)], block_bytes=2000),
        index_shards([write_tar(tmp_path / "six" / "x.tar", files[:-2])]),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.manifest: cannot be read: No such file"):
        Manifest.load(tmp_path / "absent.manifest")


def test_a_manifest_cut_off_or_changed_anywhere_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "train.manifest"
    manifest.save(path)
    data = path.read_bytes()
    for cut in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ConfigError, match=r"train\.manifest: "):
            Manifest.load(path)


def test_other_tenbin_files_and_manifests_with_wrong_counts_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "train.manifest"
    manifest.save(path)
    arrays, infos = decode_buffer(path.read_bytes(), infos=True)
    cases = [(encode_buffer([np.zeros(3)], ["x"]), "not a manifest")]
    for name, change, message in [
        ("size", lambda a: a[:1], "1 sizes"),
        ("mtime_ns", lambda a: a[:1], "1 times"),
        ("samples", lambda a: a + 1, "its shards hold 44"),
        ("blocks", lambda a: a[:-1], "its blocks hold"),
        ("blocks", lambda a: np.roll(a, 1) if a[0] != a[-1] else a[::-1] * 0, "block"),
        ("blocks", lambda a: a.astype("i8"), "wrong dtypes"),
        ("start", lambda a: a[:-1], "41 samples"),
        ("length", lambda a: a[:-1], "lengths are 41"),
        ("start", lambda a: a.reshape(2, -1), "wrong dtypes"),
        ("digest", lambda a: a ^ 1, "fingerprint"),
        ("digest", lambda a: a[:, :8], "digests of shape"),
        ("manifest", lambda a: a[:-1], "truncated"),
        ("manifest", lambda a: np.frombuffer(b'{"new":' + b"[" * 5000, np.uint8), "recursion"),
    ]:
        changed = [change(array) if info == name else array for array, info in zip(arrays, infos, strict=True)]
        cases.append((encode_buffer(changed, infos), message))
    for data, message in cases:
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=message):
            Manifest.load(path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.tar", "a/../../x.tar", ""])
def test_a_name_that_leads_out_of_the_data_set_is_refused(manifest: Manifest, name: str) -> None:
    with pytest.raises(ValueError, match="below the data set's root"):
        Manifest(
            [manifest.names[0], name],
            root=manifest.root,
            block_bytes=manifest.block_bytes,
            sizes=manifest.sizes,
            mtimes=manifest.mtimes,
            digests=manifest.digests,
            shard_samples=manifest.shard_samples,
            block_sizes=manifest.block_sizes,
            starts=manifest.starts,
            lengths=manifest.lengths,
        )


def test_a_manifest_is_a_tenbin_file_of_named_arrays(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "train.manifest")
    stream = io.BytesIO((tmp_path / "train.manifest").read_bytes())
    _, infos = decode_buffer(stream.getvalue(), infos=True)
    assert infos == ["manifest", "size", "mtime_ns", "digest", "samples", "blocks", "start", "length"]


def test_a_manifest_too_large_for_memory_is_mapped_where_it_lies_and_the_warning_says_how_to_do_better(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("webdataset.remotemanifest._MOST_IN_MEMORY", 1 << 20)
    path = tmp_path / "large.ten"
    manifest.save(path)
    no_folder = path / "cache"
    assert load_manifest(path, no_folder).fingerprint == manifest.fingerprint
    assert "is kept in memory" in caplog.text
    caplog.clear()
    monkeypatch.setattr("webdataset.remotemanifest._MOST_IN_MEMORY", path.stat().st_size - 1)
    assert load_manifest(path, no_folder).fingerprint == manifest.fingerprint
    assert "may not be written over while it is used" in caplog.text
    assert "set XDG_CACHE_HOME" in caplog.text
