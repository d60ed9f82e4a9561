"""Tars are read as Python's tarfile and GNU tar read them, and broken ones never pass for whole."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardfeed_wire.errors import ShardError
from tests.webdataset.tars import numbered_files, read_by_tarfile, tar_bytes
from webdataset.keys import base_plus_ext, is_meta
from webdataset.tarsource import BytesSource, FileSource, Source, StreamSource
from webdataset.tarwalk import read_member, walk

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}

safe = st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"])
components = st.text(safe, min_size=1, max_size=60).filter(lambda text: text not in (".", ".."))
paths = st.lists(components, min_size=1, max_size=6).map("/".join)
files = st.lists(st.tuples(paths, st.binary(max_size=1500)), max_size=6)


class Dribble(io.RawIOBase):
    """A stream that gives less than it is asked for, as pipes and sockets do."""

    def __init__(self, data: bytes, most: int = 97) -> None:
        super().__init__()
        self._data = data
        self._most = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        part = self._data[: min(len(buffer), self._most)]
        self._data = self._data[len(part) :]
        buffer[: len(part)] = part
        return len(part)


def read_all(source: Source) -> list[tuple[str, bytes]]:
    """Read every file of a tar by our walk."""
    return [(member[0], read_member(source, member)) for member in walk(source)]


@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS.keys())
@given(files=files)
def test_names_and_contents_are_what_tarfile_reads_in_each_format(
    tar_format: int, files: list[tuple[str, bytes]]
) -> None:
    try:
        data = tar_bytes(files, tar_format)
    except ValueError:
        return  # ustar cannot hold every long name
    expected = read_by_tarfile(data)
    assert read_all(BytesSource(data)) == expected
    assert read_all(StreamSource(io.BytesIO(data))) == expected
    assert read_all(StreamSource(Dribble(data))) == expected


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_compressed_tars_read_like_plain_ones_from_streams(compression: str) -> None:
    files = numbered_files(range(30))
    assert read_all(StreamSource(io.BytesIO(tar_bytes(files, mode=f"w:{compression}")))) == files
    assert read_all(StreamSource(Dribble(tar_bytes(files, mode=f"w:{compression}")))) == files


def test_a_compressed_tar_that_is_cut_off_is_an_error() -> None:
    data = tar_bytes([("a.bin", os.urandom(100_000))], mode="w:gz")
    for cut in (len(data) // 2, len(data) - 4, 20):
        with pytest.raises(ShardError):
            read_all(StreamSource(io.BytesIO(data[:cut])))


@pytest.mark.parametrize("tar_format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_gnu_tar_writes_is_read_as_it_was(tmp_path: Path, tar_format: str) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    written = {"a.txt": b"a", "deep/b.bin": bytes(5000), "empty.cls": b""}
    if tar_format not in ("v7", "ustar"):
        written["deep/" + "long" * 50 + ".txt"] = b"long"
    if tar_format in ("gnu", "posix"):
        written["ünï.txt"] = b"unicode"
    for name, content in written.items():
        (folder / name).write_bytes(content)
    (folder / "link.txt").symlink_to("a.txt")
    target = tmp_path / "out.tar"
    names = [*sorted(written), "link.txt"]
    # One hard link: its second name has no data of its own, and is not a file here or in tarfile.
    subprocess.run(["tar", "-cf", target, f"--format={tar_format}", "-C", folder, "deep", *names], check=True)
    data = target.read_bytes()
    assert dict(read_all(BytesSource(data))) == written
    assert read_all(BytesSource(data)) == [(name, content) for name, content in read_by_tarfile(data)]


@pytest.mark.parametrize(
    "options",
    [["--format=gnu"], *(["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0"))],
)
@pytest.mark.parametrize("pieces", [3, 60])
def test_sparse_files_come_out_whole(tmp_path: Path, options: list[str], pieces: int) -> None:
    path = tmp_path / "holes.bin"
    with path.open("wb") as stream:
        for piece in range(pieces):
            stream.seek(piece * 65536)
            stream.write(bytes([piece + 1]) * 4096)
        stream.truncate(pieces * 65536 + 100_000)
    (tmp_path / "after.txt").write_bytes(b"after")
    target = tmp_path / "out.tar"
    subprocess.run(["tar", "-cSf", target, *options, "-C", tmp_path, "holes.bin", "after.txt"], check=True)
    data = target.read_bytes()
    if len(data) > path.stat().st_size:
        pytest.skip("this file system keeps no holes")
    assert read_all(BytesSource(data)) == [("holes.bin", path.read_bytes()), ("after.txt", b"after")]
    assert read_all(StreamSource(io.BytesIO(data))) == read_by_tarfile(data)


def test_sizes_in_base_256_are_read() -> None:
    data = bytearray(tar_bytes([("a.txt", b"hello")]))
    data[124:136] = b"\x80" + (5).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    assert read_all(BytesSource(bytes(data))) == [("a.txt", b"hello")] == read_by_tarfile(bytes(data))


def test_checksums_of_signed_bytes_are_taken_too() -> None:
    data = bytearray(tar_bytes([("ü.txt", b"hello")]))
    data[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in data[:512])
    data[148:156] = f"{signed:06o}\0 ".encode()
    assert read_all(BytesSource(bytes(data))) == [("ü.txt", b"hello")]


def test_a_file_of_many_gigabytes_is_leapt_over_by_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "large.tar"
    info = tarfile.TarInfo("large.bin")
    info.size = 9 << 30
    with path.open("wb") as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        stream.seek(info.size, os.SEEK_CUR)
        stream.write(tar_bytes([("next.bin", b"next")]))
    with path.open("rb") as stream:
        source = FileSource(stream.fileno(), path.stat().st_size)
        assert [member[:2] for member in walk(source)] == [("large.bin", 0), ("next.bin", 512 + info.size)]


def whole() -> bytes:
    """Make a tar with every kind of header that matters."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in [("a.txt", b"hello"), ("n" * 150 + ".bin", bytes(3000)), ("b.cls", b"1")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    # Without the zeros that tarfile adds to fill a record.
    return stream.getvalue().rstrip(b"\0") + bytes(-len(stream.getvalue().rstrip(b"\0")) % 512 + 1024)


@pytest.mark.parametrize(
    "source", [BytesSource, lambda data: StreamSource(io.BytesIO(data)), lambda data: StreamSource(Dribble(data))]
)
def test_a_tar_cut_off_anywhere_before_its_end_mark_is_truncated(source: type[BytesSource]) -> None:
    data = whole()
    for cut in range(0, len(data) - 1023, 64):
        with pytest.raises(ShardError, match=r"truncated|empty|not a tar"):
            read_all(source(data[:cut]))
    assert len(read_all(source(data))) == 3
    # One block of zeros is an end, too, as GNU tar has it.
    assert len(read_all(source(data[:-512]))) == 3


def test_truncation_names_the_byte_where_the_tar_ends() -> None:
    with pytest.raises(ShardError, match=r"ends at byte 514, inside 'a.txt', which has 5 bytes"):
        read_all(BytesSource(tar_bytes([("a.txt", b"hello")])[:514]))
    with pytest.raises(ShardError, match=r"ends at byte 1024, without a tar's end mark"):
        read_all(BytesSource(tar_bytes([("a.txt", b"hello")])[:1024]))


@settings(max_examples=300)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_gives_files_or_a_shard_error_and_nothing_else(where: int, bit: int) -> None:
    data = bytearray(whole())
    data[where % len(data)] ^= 1 << bit
    for source in (BytesSource(bytes(data)), StreamSource(io.BytesIO(bytes(data)))):
        try:
            found = read_all(source)
        except ShardError:
            continue
        assert sum(len(content) for _, content in found) <= len(data)


@given(st.binary(max_size=3000))
def test_arbitrary_bytes_are_refused_as_shard_errors_only(noise: bytes) -> None:
    with pytest.raises(ShardError):
        read_all(StreamSource(io.BytesIO(b"x" + noise)))


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd-compressed"),
        (b"PK\x03\x04" + bytes(600), "a zip file"),
        (b"<html>" * 99, "not a tar"),
    ],
)
def test_what_is_not_a_tar_is_named(start: bytes, what: str) -> None:
    with pytest.raises(ShardError, match=what):
        read_all(StreamSource(io.BytesIO(start)))


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """Write a header by hand."""
    block = (
        name.ljust(100, b"\0")
        + b"0000644\0"
        + b"0000000\0" * 2
        + size.ljust(12, b"\0")
        + b"00000000000\0"
        + b" " * 8
        + kind
    )
    block = (block.ljust(257, b"\0") + b"ustar\0" + b"00").ljust(512, b"\0")
    return block[:148] + f"{sum(block):06o}\0 ".encode() + block[156:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(b"a.txt", b"-0000000005\0"), "negative size"),
        (header(b"a.txt", b"\xff" * 12), "negative size"),
        (header(b"a.txt", b"00000000x05\0"), "not octal"),
        (header(b"a.txt", b"\x80" + b"\xff" * 11), "truncated"),
        (header(b"p", b"77777777777\0", b"x"), "claims 8589934591 bytes"),
        (header(b"L", b"77777777777\0", b"L"), "claims 8589934591 bytes"),
        (header(b"p", b"00000000005\0", b"x") + b"hello".ljust(512, b"\0"), "pax header in it is malformed"),
        (header(b"p", b"00000000011\0", b"x") + b"9 size=-1".ljust(512, b"\0"), "malformed"),
        (
            header(b"p", b"00000000012\0", b"x") + b"10 size=-\n".ljust(512, b"\0") + header(b"a", b"0\0"),
            "holds the size",
        ),
        (header(b"p", b"00000000000\0", b"x") + bytes(1024), "without its member"),
    ],
)
def test_hostile_headers_are_refused(data: bytes, message: str) -> None:
    for source in (BytesSource(data), StreamSource(io.BytesIO(data))):
        with pytest.raises(ShardError, match=message):
            read_all(source)


def test_global_pax_headers_are_read_over_unless_they_move_members() -> None:
    def with_global(records: dict[str, str]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers=records) as archive:
            info = tarfile.TarInfo("a.txt")
            info.size = 5
            archive.addfile(info, io.BytesIO(b"hello"))
        return stream.getvalue()

    assert read_all(BytesSource(with_global({"comment": "of git"}))) == [("a.txt", b"hello")]
    with pytest.raises(ShardError, match="global pax header in it sets 'path'"):
        read_all(BytesSource(with_global({"path": "b.txt"})))


def test_a_sparse_file_that_claims_exabytes_takes_no_memory() -> None:
    pax = b"22 GNU.sparse.major=1\n" + b"22 GNU.sparse.minor=0\n" + b"43 GNU.sparse.realsize=9223372036854775807\n"
    data = (
        header(b"p", f"{len(pax):011o}\0".encode(), b"x") + pax.ljust(512, b"\0") + header(b"a.b", b"1\0") + bytes(2048)
    )
    with pytest.raises(ShardError, match="sparse file in it has 9223372036854775807 bytes"):
        read_all(BytesSource(data))


@pytest.mark.parametrize(
    ("path", "key", "suffix"),
    [
        ("a.png", "a", "png"),
        ("dir.d/a.seg.png", "dir.d/a", "seg.png"),
        ("./a.PNG", "./a", "PNG"),
        ("a.", "a", ""),
        ("a", None, None),
        ("dir.d/a", None, None),
        (".hidden", None, None),
        ("dir/.hidden.png", None, None),
        ("", None, None),
    ],
)
def test_a_path_splits_at_the_first_dot_of_its_last_component(path: str, key: str | None, suffix: str | None) -> None:
    assert base_plus_ext(path) == (key, suffix)


def test_names_that_speak_of_the_shard_are_known() -> None:
    assert is_meta("__meta__")
    assert is_meta("__info__/x.json")
    assert not is_meta("__meta__.json")
    assert not is_meta("dir/__meta__")


def test_gnu_tar_is_here() -> None:
    assert shutil.which("tar")
