"""Files become the samples that their names say, whichever way their headers are read, and wherever from."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfeed_wire.errors import SampleError, ShardError
from tests.webdataset.tars import read_by_tarfile, tar_bytes
from webdataset.grouping import group_members
from webdataset.keys import Keys, base_plus_ext, is_meta
from webdataset.tarheader import plain_header
from webdataset.tarsource import BytesSource, OrderedSource, StreamSource

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
TIME = 1795545698.838175
SOURCES: dict[str, Callable[[bytes], OrderedSource]] = {
    "memory": BytesSource,
    "stream": lambda data: StreamSource(io.BytesIO(data)),
    "buffered": lambda data: StreamSource(io.BufferedReader(io.BytesIO(data))),  # type: ignore[arg-type]
}
# Those about whole blocks, and about what is read together with the next header.
SIZES = (0, 1, 511, 512, 513, 15_999, 16_384, 16_385, 40_000)

# A slash at the end means a directory to the oldest tars, and tarfile takes it away.
names = st.text("aA_./é\udcff", min_size=1, max_size=9).filter(lambda name: not name.endswith("/"))
long_names = names.map(lambda name: "long/" * 30 + name)
files = st.lists(st.tuples(names | long_names, st.sampled_from(SIZES)), max_size=8)


def by_dots(path: str) -> tuple[str | None, str | None]:
    """Split at the last dot, as a user's own function might."""
    key, dot, suffix = path.rpartition(".")
    return (key, suffix) if dot else (None, None)


def grouped(data: bytes, keys: Keys, suffixes: set[str] | None) -> list[dict[str, Any] | str]:
    """Group the files that Python's tarfile reads, one after the other; the key of a sample with a field twice."""
    samples: list[dict[str, Any]] = []
    twice: set[int] = set()
    for path, content in read_by_tarfile(data):
        key, suffix = keys(path)
        if key is None or suffix is None or is_meta(path):
            continue
        if not samples or samples[-1]["__key__"] != key:
            samples.append({"__key__": key})
        if suffix.lower() in samples[-1]:
            twice.add(len(samples) - 1)
        elif suffixes is None or suffix.lower() in suffixes:
            samples[-1][suffix.lower()] = content
    return [sample["__key__"] if number in twice else sample for number, sample in enumerate(samples)]


@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS.keys())
@given(
    files=files,
    keys=st.sampled_from([base_plus_ext, by_dots]),
    suffixes=st.sampled_from([None, {"a", "a.a", ""}]),
    time=st.sampled_from([0, TIME]),
)
def test_samples_are_what_the_names_that_tarfile_reads_say(
    tar_format: int, files: list[tuple[str, int]], keys: Keys, suffixes: set[str] | None, time: float
) -> None:
    contents = [(name, bytes([number]) * size) for number, (name, size) in enumerate(files)]
    try:
        data = tar_bytes(contents, tar_format, time=time)
    except ValueError:
        return  # ustar cannot hold every long name
    expected = grouped(data, keys, suffixes)
    for name, source in SOURCES.items():
        found = group_members(source(data), keys, suffixes)
        assert [each.key if isinstance(each, SampleError) else each for each in found] == expected, name


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("size", [5, 40_000])
def test_a_tar_cut_off_inside_a_sample_gives_no_half_of_it(source: Callable[[bytes], OrderedSource], size: int) -> None:
    data = tar_bytes([("a.bin", bytes(size)), ("a.cls", b"1"), ("b.bin", bytes(size)), ("b.cls", b"2")])
    end = 512 + size + -size % 512 + 1024
    for cut in (end + 512 + size - 1, end + 512 + size, end * 2 - 1, end * 2):
        found = group_members(source(data[:cut]), base_plus_ext, None)
        assert next(found) == {"__key__": "a", "bin": bytes(size), "cls": b"1"}
        with pytest.raises(ShardError, match=f"it is truncated: it ends at byte {cut}"):
            list(found)


@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS.keys())
def test_a_plain_header_says_name_and_size_and_each_changed_bit_of_it_is_noticed(tar_format: int) -> None:
    block = tar_bytes([("dir/e.seg.png", bytes(1234))], tar_format)[:512]
    assert plain_header(block) == (b"dir/e.seg.png", 1234)
    for place in range(512):
        for bit in range(8):
            broken = bytearray(block)
            broken[place] ^= 1 << bit
            # The digits of the checksum stand with some freedom, as all programs read them.
            assert plain_header(bytes(broken)) is None or 148 <= place < 156, (place, bit)


def test_what_a_header_alone_does_not_say_is_not_plain() -> None:
    def header(kind: bytes = b"0", **fields: Any) -> bytes:
        info = tarfile.TarInfo("a.txt")
        info.type = kind
        for name, value in fields.items():
            setattr(info, name, value)
        return info.tobuf(tarfile.GNU_FORMAT)[:512]

    assert plain_header(header()) == (b"a.txt", 0)
    for kind in (b"\0", b"1", b"2", b"5", b"7", b"x", b"g", b"L", b"S"):
        assert plain_header(header(kind)) is None
    assert plain_header(header(size=8 << 30)) is None, "a size in base 256"
    long = tarfile.TarInfo("a" * 90 + "/" + "b" * 90)
    assert plain_header(long.tobuf(tarfile.USTAR_FORMAT)) is None, "a name with a prefix"
    directory = tarfile.TarInfo("a/")
    assert plain_header(directory.tobuf(tarfile.USTAR_FORMAT)) is None, "a directory as the oldest tars have it"
    assert plain_header(header()[:511]) is None
    assert plain_header(bytes(512)) is None
