"""A shard is read only while it is the file that was indexed."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfeed_wire.errors import ShardError
from tests.webdataset.tars import numbered_files, write_tar
from webdataset.indexing import index_shards
from webdataset.manifest import Manifest
from webdataset.samples import read_sample
from webdataset.shards import ShardReader


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Give five shards of 4 samples each."""
    return index_shards(
        [write_tar(tmp_path / "d" / f"{n}.tar", numbered_files(range(4 * n, 4 * n + 4))) for n in range(5)]
    )


@pytest.fixture
def reader(manifest: Manifest) -> Iterator[ShardReader]:
    """Give a reader that holds at most two shards open."""
    with ShardReader(manifest, max_open=2) as reader:
        yield reader


def keys(reader: ShardReader, manifest: Manifest) -> list[str]:
    """Read every sample and return the keys."""
    shards = [shard for shard, count in enumerate(manifest.shard_samples.tolist()) for _ in range(count)]
    found = []
    for shard, start, length in zip(shards, manifest.starts.tolist(), manifest.lengths.tolist(), strict=True):
        reader.check(shard)
        found.append(read_sample(reader.read(shard, start, length))["__key__"])
    return found


def test_every_sample_is_read_with_few_descriptors(reader: ShardReader, manifest: Manifest) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert keys(reader, manifest) == [f"{number:06d}" for number in range(20)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


FEW_DESCRIPTORS = """
import os, pickle, resource, sys
reader = pickle.load(open(sys.argv[1], "rb"))
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 3, most))
for turn in range(2):
    print(*(reader.read(number, 0, 6).decode() for number in range(5)))
try:
    while True:
        os.open(os.devnull, os.O_RDONLY)
except OSError:
    print(reader.read(0, 0, 6).decode())
"""


def test_shards_are_read_where_the_process_may_not_have_all_open_at_once(manifest: Manifest, tmp_path: Path) -> None:
    with ShardReader(manifest) as reader:
        (tmp_path / "reader").write_bytes(pickle.dumps(reader))
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, tmp_path / "reader"], capture_output=True, text=True, timeout=60
    )
    names = [f"{4 * shard:06d}" for shard in range(5)]
    assert done.stdout.split() == [*names, *names, names[0]], done.stderr


def test_a_copy_of_the_data_set_under_another_root_is_read(manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "d", tmp_path / "copy", copy_function=shutil.copy)
    os.utime(tmp_path / "copy" / "0.tar", ns=(0, 0))
    shutil.rmtree(tmp_path / "d")
    with ShardReader(manifest, tmp_path / "copy") as reader:
        assert len(keys(reader, manifest)) == 20


def test_a_shard_of_another_size_is_refused_at_the_start(manifest: Manifest, tmp_path: Path) -> None:
    with (tmp_path / "d" / "3.tar").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ShardError, match=r"shard 3\.tar: changed since it was indexed.*`shardfeed index`") as caught:
        ShardReader(manifest)
    assert caught.value.shard == "3.tar"


def test_a_shard_of_the_same_size_with_other_samples_is_refused_at_the_start(
    manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "d" / "3.tar"
    before = path.stat()
    write_tar(path, [(name.replace("0000", "0009"), content) for name, content in numbered_files(range(12, 16))])
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(0, before.st_mtime_ns + 1))
    with pytest.raises(ShardError, match=r"shard 3\.tar: changed since it was indexed"):
        ShardReader(manifest)


def test_all_missing_shards_are_named_and_the_others_can_be_read_where_asked(
    manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "d" / "1.tar").unlink()
    (tmp_path / "d" / "2.tar").unlink()
    with pytest.raises(ShardError, match=r"(?s)2 of 5 shards.*1\.tar.*No such file.*2\.tar"):
        ShardReader(manifest)
    with ShardReader(manifest, partial=True) as reader:
        assert reader.readable == [True, False, False, True, True]
        with pytest.raises(ShardError, match="No such file"):
            reader.check(1)
        with pytest.raises(ShardError, match="No such file"):
            reader.read(1, 0, 512)
        assert reader.read(3, 0, 6) == b"000012"


def test_a_server_that_can_read_no_shard_does_not_start(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="5 of 5 shards"):
        ShardReader(manifest, tmp_path / "elsewhere", partial=True)


@pytest.mark.parametrize("how", ["rewritten", "touched", "replaced", "removed"])
def test_a_shard_that_changes_while_it_is_served_is_refused(reader: ShardReader, tmp_path: Path, how: str) -> None:
    path = tmp_path / "d" / "1.tar"
    data = path.read_bytes()
    reader.check(1)
    reader.read(1, 0, 512)
    if how == "rewritten":
        path.write_bytes(data + b"x")
    elif how == "touched":
        os.utime(path, ns=(0, 0))
    elif how == "replaced":
        times = path.stat()
        (tmp_path / "new").write_bytes(data)
        os.utime(tmp_path / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
        (tmp_path / "new").rename(path)
    else:
        path.unlink()
    with pytest.raises(ShardError, match=r"shard 1\.tar: .*(changed since it was opened|is gone).*`shardfeed index`"):
        reader.check(1)


def test_a_shard_replaced_between_check_and_first_read_is_refused(reader: ShardReader, tmp_path: Path) -> None:
    reader.check(1)
    path = tmp_path / "d" / "1.tar"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(ShardError, match="changed since it was opened"):
        reader.read(1, 0, 512)


@pytest.mark.parametrize(("start", "length"), [(-1, 10), (0, -1), (0, 1 << 40), (1 << 62, 1)])
def test_a_range_that_is_not_in_the_shard_is_refused(reader: ShardReader, start: int, length: int) -> None:
    with pytest.raises(ShardError, match=r"shard 0\.tar: it has \d+ bytes, none at"):
        reader.read(0, start, length)


def test_a_shard_cut_short_under_an_open_descriptor_is_refused(reader: ShardReader, tmp_path: Path) -> None:
    reader.read(0, 0, 512)
    os.truncate(tmp_path / "d" / "0.tar", 600)
    with pytest.raises(ShardError, match="ends at byte 600, cut short"):
        reader.read(0, 512, 512)


def test_a_reader_pickles_without_looking_at_the_shards_again(reader: ShardReader, tmp_path: Path) -> None:
    reader.read(0, 0, 512)
    pickled = pickle.dumps(reader)
    os.utime(tmp_path / "d" / "0.tar", ns=(0, 0))
    with pickle.loads(pickled) as other:
        assert other.read(1, 0, 6) == b"000004"
        with pytest.raises(ShardError, match="changed since it was opened"):
            other.check(0)


def test_a_closed_reader_can_be_used_again(reader: ShardReader) -> None:
    reader.read(0, 0, 512)
    reader.close()
    assert reader.read(0, 0, 6) == b"000000"
