"""Shards of GNU tar, of bsdtar and of Python's tarfile read as those programs themselves read them.

The files have long names, names that are not ASCII, links, holes, and what makes pax headers necessary.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.requirements import require
from webdataset.samples import read_sample, tariterator
from webdataset.tarindex import index_shard

pytestmark = [pytest.mark.peers, pytest.mark.timeout(240)]

HOLES = [(0, b"start"), (1 << 20, b"middle" * 1000), (3 << 20, b"end")]
LINKS = {"x-hard.link.txt", "x-soft.link.txt"}
# What a format cannot hold: v7 and ustar no name of this length, v7 and GNU's old ones no such time.
LONG = {"v7": 90, "ustar": 90}


def make_files(folder: Path, longest: int) -> None:
    """Write what is to be packed."""
    (folder / "tief/ünï").mkdir(parents=True)
    (folder / "a.b.d").mkdir()
    contents = {
        "tief/0001.txt": "grün".encode(),
        "tief/0001.bin": bytes(range(256)) * 41,
        "tief/ünï/日本語.txt": b"not ASCII",
        "a.b.d/0002.cls": b"7",
        "a.b.d/0002.empty": b"",
        "k" * (longest - 4) + ".txt": b"long",
        "0003.txt": b"first of two names",
        # GNU tar quotes, and its formats disagree about, backslashes and line feeds.
        "back\\slash and space.txt": b"odd",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        os.utime(folder / name, ns=(1_500_000_000_123_456_789,) * 2)
    with (folder / "0004.bin").open("wb") as stream:
        for offset, piece in HOLES:
            stream.seek(offset)
            stream.write(piece)
        stream.truncate(4 << 20)
    (folder / "x-soft.link.txt").symlink_to("tief/0001.txt")
    os.link(folder / "0003.txt", folder / "x-hard.link.txt")


def names(folder: Path) -> list[str]:
    """What to pack, in an order that is the same for every program: the second name of a file after its first."""
    return sorted(path.name for path in folder.iterdir())


def assert_holes_left_out(shard: Path, file: Path) -> None:
    """Make sure that a shard holds holes as holes, where this file system kept them."""
    if file.stat().st_blocks * 512 < 1 << 20:
        assert shard.stat().st_size < 1 << 20


def extracted(program: list[object], shard: Path, folder: Path) -> dict[str, bytes]:
    """Unpack a shard with the program that wrote it, and read the files."""
    folder.mkdir()
    subprocess.run([*map(str, program), "-xf", str(shard), "-C", str(folder)], check=True)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name not in LINKS
    }


def read_by_us(shard: Path) -> dict[str, bytes]:
    """Read a shard in order, and by the ranges of its index, which must agree; give its files."""
    with shard.open("rb") as stream:
        samples = list(tariterator(stream, decoder=False))
    data = shard.read_bytes()
    index = index_shard(shard)
    ranges = [data[int(start) : int(start + length)] for start, length in zip(index.starts, index.lengths, strict=True)]
    assert [read_sample(part) for part in ranges] == samples
    return {
        f"{sample['__key__']}.{field}": content
        for sample in samples
        for field, content in sample.items()
        if field != "__key__"
    }


@pytest.mark.parametrize("sparse", [[], ["--sparse"]], ids=["dense", "sparse"])
@pytest.mark.parametrize("tar_format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_shards_of_gnu_tar(tmp_path: Path, tar_format: str, sparse: list[str]) -> None:
    program = shutil.which("tar")
    assert program is not None
    assert "GNU tar" in subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if sparse and tar_format in LONG:
        return  # these formats have no holes, and GNU tar says so
    make_files(tmp_path / "in", LONG.get(tar_format, 250))
    shard = tmp_path / "shard.tar"
    command = [program, "-cf", shard, f"--format={tar_format}", *sparse, "-C", tmp_path / "in", *names(tmp_path / "in")]
    subprocess.run([*map(str, command)], check=True)
    if sparse:
        assert_holes_left_out(shard, tmp_path / "in/0004.bin")
    expected = extracted([program], shard, tmp_path / "out")
    assert len(expected) == 9
    assert read_by_us(shard) == expected


@pytest.mark.parametrize("tar_format", ["v7", "ustar", "pax", "gnutar"])
def test_shards_of_bsdtar(tmp_path: Path, tar_format: str, bsdtar: str | None) -> None:
    require("peers", bsdtar, "bsdtar is not installed (Debian, Ubuntu: apt install libarchive-tools)")
    make_files(tmp_path / "in", LONG.get(tar_format, 250))
    shard = tmp_path / "shard.tar"
    command = [bsdtar, "-cf", shard, f"--format={tar_format}", "-C", tmp_path / "in", *names(tmp_path / "in")]
    subprocess.run([*map(str, command)], check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    if tar_format == "pax":
        assert_holes_left_out(shard, tmp_path / "in/0004.bin")
    expected = extracted([bsdtar], shard, tmp_path / "out")
    assert len(expected) == 9
    assert read_by_us(shard) == expected


@pytest.mark.parametrize("tar_format", ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"])
def test_shards_of_pythons_tarfile(tmp_path: Path, tar_format: str) -> None:
    make_files(tmp_path / "in", 90 if tar_format == "USTAR_FORMAT" else 250)
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w", format=getattr(tarfile, tar_format)) as archive:
        for name in names(tmp_path / "in"):
            archive.add(tmp_path / "in" / name, name)
    with tarfile.open(shard) as archive:
        expected = {}
        for member in archive:
            if member.isreg():
                content = archive.extractfile(member)
                assert isinstance(content, io.BufferedReader)
                expected[member.name] = content.read()
    assert len(expected) == 9
    assert read_by_us(shard) == expected
