"""Indexes that DALI and Energon made are taken where they fit their shard, and refused where they do not."""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shardfeed_wire.errors import ShardError
from tests.cli.command import run
from tests.remote.range_server import RangeServer
from tests.webdataset.tars import numbered_files, write_tar
from webdataset.indexing import index_shards
from webdataset.manifest import Manifest
from webdataset.samples import read_sample
from webdataset.shards import ShardReader

Write = Callable[[Path], Path]


def write_dali(tar: Path) -> Path:
    """Write what DALI's wds2idx writes: offsets of the data, by path up to the first dot."""
    samples: list[tuple[str, list[str]]] = []
    with tarfile.open(tar) as archive:
        for member in archive:
            folder, _, base = member.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if not member.isreg() or not stem or not dot:
                continue
            key = f"{folder}/{stem}"
            if not samples or samples[-1][0] != key:
                samples.append((key, []))
            samples[-1][1].append(f"{extension} {member.offset_data} {member.size} {member.name}")
    path = tar.with_suffix(".idx")
    lines = [f"v1.2 {len(samples)}", *(" ".join(files) for _, files in samples)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_energon(tar: Path) -> Path:
    """Write what Energon's TarIndexWriter writes: where samples start, and where the last member ends."""
    offsets: list[int] = []
    last = None
    with tarfile.open(tar) as archive:
        for member in archive:
            stem, dot, _ = member.name.partition(".")
            if member.isreg() and dot and stem != last:
                offsets.append(member.offset)
                last = stem
        offsets.append(archive.offset)
    path = tar.with_name(tar.name + ".idx")
    path.write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
    return path


both = pytest.mark.parametrize("write", [write_dali, write_energon])


@pytest.fixture(params=[tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "pax"])
def tar(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A shard of 30 samples; with pax, of names so long that every member has an extension header."""
    prefix = "n" * 90 + "/" + "x" * 90 if request.param == tarfile.PAX_FORMAT else ""
    return Path(write_tar(tmp_path / "0.tar", numbered_files(range(30), prefix=prefix), request.param))


def keys_of(manifest: Manifest) -> list[str]:
    with ShardReader(manifest) as reader:
        pairs = zip(manifest.starts.tolist(), manifest.lengths.tolist(), strict=True)
        return [read_sample(reader.read(0, start, length))["__key__"][-6:] for start, length in pairs]


@both
def test_an_index_gives_the_samples_that_scanning_gives(tar: Path, write: Write) -> None:
    write(tar)
    taken: list[str] = []
    manifest = index_shards([tar], on_tar_index=taken.append)
    assert taken == ["0.tar"]
    assert keys_of(manifest) == [f"{number:06d}" for number in range(30)]
    assert manifest.fingerprint != index_shards([tar]).fingerprint


@both
def test_a_manifest_of_an_index_knows_a_copy_from_a_changed_shard(tar: Path, write: Write) -> None:
    write(tar)
    manifest = index_shards([tar], on_tar_index=lambda name: None)
    data = tar.read_bytes()
    tar.unlink()
    tar.write_bytes(data)
    assert len(keys_of(manifest)) == 30
    other = tar.parent / "other" / tar.name
    write_tar(other, numbered_files(range(29), size=900))
    tar.write_bytes(other.read_bytes().ljust(len(data), b"\0")[: len(data)])
    with pytest.raises(ShardError, match=r"changed since it was indexed|truncated"):
        ShardReader(manifest)


@both
def test_from_afar_an_index_spares_reading_the_shard(
    server: RangeServer, tmp_path: Path, write: Write, local: list[str]
) -> None:
    for path in map(Path, local):
        index = write(path)
        server.files[f"/data/{index.name}"] = index.read_bytes()
    urls = [f"{server.url}{path}" for path in sorted(server.files) if path.endswith(".tar")]
    taken: list[str] = []
    manifest = index_shards(urls, on_tar_index=taken.append)
    assert sorted(taken) == ["0.tar", "1.tar", "2.tar", "3.tar"]
    sent = server.sent
    assert sent < sum(len(server.files[path]) for path in server.files) // 4
    assert (manifest.lengths == index_shards(urls).lengths).all()
    with ShardReader(manifest) as reader:
        assert read_sample(reader.read(3, int(manifest.starts[99]), int(manifest.lengths[99])))["__key__"] == "000099"


@both
@pytest.mark.parametrize("how", ["other samples", "fewer", "more", "cut", "text"])
def test_an_index_that_does_not_fit_its_shard_is_refused_with_the_way_out(
    tmp_path: Path, write: Write, how: str
) -> None:
    tar = Path(write_tar(tmp_path / "0.tar", numbered_files(range(30))))
    index = write(tar)
    match how:
        case "other samples":
            write_tar(tar, [("early.bin", b"x" * 600), *numbered_files(range(30))])
        case "fewer":
            write_tar(tar, numbered_files(range(20)))
        case "more":
            write_tar(tar, numbered_files(range(40)))
        case "cut":
            index.write_bytes(index.read_bytes()[:-21])
        case "text":
            index.write_text("v1.1 3\n" if index.name == "0.idx" else "something else")
    with pytest.raises(ShardError, match=r"shard 0\.tar: .*idx: this tar index cannot be taken: .*`--scan`"):
        index_shards([tar], on_tar_index=lambda name: None)
    assert index_shards([tar]).samples >= 20


def test_the_command_takes_indexes_says_so_and_scans_where_told(tmp_path: Path) -> None:
    tar = Path(write_tar(tmp_path / "0.tar", numbered_files(range(30))))
    write_dali(tar)
    done = run("index", tar, "-o", tmp_path / "m")
    assert "taken for 1 shards" in done.stdout, done.stderr
    done = run("index", tar, "-o", tmp_path / "m", "--scan")
    assert "taken" not in done.stdout
    assert index_shards([tar]).fingerprint in done.stdout
