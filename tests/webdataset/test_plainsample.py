"""The short way through a sample's bytes gives what the walk over a tar gives, or leaves the sample to it."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfeed_wire.errors import SampleError, ShardError
from tests.webdataset.tars import tar_bytes
from webdataset.keys import base_plus_ext
from webdataset.plainsample import read_plain_sample
from webdataset.samples import read_sample, tariterator

END = 1024


def members(*named: tuple[str, bytes], format: int = tarfile.USTAR_FORMAT, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The members' bytes, headers and padding, without the tar's end."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for name, data in named:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            tar.addfile(member, io.BytesIO(data))
        end = tar.offset
    return stream.getvalue()[:end]


names = st.text("abAB01.é/_", min_size=1, max_size=12).filter(lambda name: "//" not in name and name[0] != "/")


@given(
    st.lists(st.tuples(names, st.binary(max_size=1200)), min_size=1, max_size=4),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from([None, frozenset({"a", "b", "a.b"})]),
)
def test_what_it_reads_is_what_iterating_the_tar_gives(
    named: list[tuple[str, bytes]], format: int, suffixes: frozenset[str] | None
) -> None:
    data = members(*named, format=format)
    found = read_plain_sample(data, base_plus_ext, suffixes)
    if found is not None:
        (sample,) = tariterator(io.BytesIO(data + bytes(END)), decoder=False, suffixes=suffixes)
        assert found == sample


def test_it_reads_what_is_written_as_nearly_all_tars_are() -> None:
    data = members(("a/b.jpg", b"picture"), ("a/b.CLS", b"7"), ("a/b.seg.png", bytes(512)))
    expected = {"__key__": "a/b", "jpg": b"picture", "cls": b"7", "seg.png": bytes(512)}
    assert read_plain_sample(data, base_plus_ext, None) == expected
    assert read_plain_sample(data, base_plus_ext, {"cls"}) == {"__key__": "a/b", "cls": b"7"}


def test_a_time_in_front_of_each_member_is_plain_too() -> None:
    files = [("a/b.jpg", b"picture"), ("a/b.cls", b"7")]
    data = tar_bytes(files, tarfile.PAX_FORMAT, time=1795545698.838175)
    assert data[156:157] == b"x"
    sample = {"__key__": "a/b", "jpg": b"picture", "cls": b"7"}
    assert read_plain_sample(data[: 8 * 512], base_plus_ext, None) == sample


def test_an_extension_header_that_says_more_than_a_time_is_not_plain() -> None:
    data = tar_bytes([("a.jpg", b"1")], tarfile.PAX_FORMAT, time=1.5)[: 4 * 512]
    assert read_plain_sample(data, base_plus_ext, None) is not None
    for says in (b"13 atime=1.5\n", b"12 mtime=1.5\n", b"14 mtime=-1.5\n", b"13 mtime=1.5 ", b"13 mtime=x.5\n", b""):
        assert read_plain_sample(data[:512] + says.ljust(512, b"\0") + data[1024:], base_plus_ext, None) is None, says
    for place in range(512):
        broken = bytearray(data)
        broken[place] ^= 1
        # Of the checksum's field the last byte is a space that nobody looks at.
        assert read_plain_sample(bytes(broken), base_plus_ext, None) is None or place == 155, place


@pytest.mark.parametrize(
    "data",
    [
        members(("a.jpg", b"1"), ("b.jpg", b"2")),
        members(("a" * 90 + "/" + "b" * 90 + ".jpg", b"1")),
        members(("a" * 200 + ".jpg", b"1"), format=tarfile.PAX_FORMAT),
        members(("a" * 200 + ".jpg", b"1"), format=tarfile.GNU_FORMAT),
        members(("a.jpg", b""), kind=tarfile.SYMTYPE),
        members(("__meta__.jpg", b"1")),
        members(("none", b"1")),
        members(("a.jpg", b"1"), ("a.JPG", b"2")),
        members(("a.jpg", b"1"))[:-1],
        members(("a.jpg", b"1")) + b"x",
        members(("a.jpg", b"1")).replace(b"a.jpg", b"c.jpg"),
        members(("a.jpg", b"1")) + bytes(512),
        b"",
    ],
    ids=[
        "two keys",
        "prefix",
        "pax",
        "gnu",
        "link",
        "meta",
        "no field",
        "twice",
        "cut",
        "more",
        "checksum",
        "end",
        "nothing",
    ],
)
def test_what_is_not_plain_is_left_to_the_walk(data: bytes) -> None:
    assert read_plain_sample(data, base_plus_ext, None) is None


def test_a_field_twice_and_a_broken_header_are_still_said() -> None:
    with pytest.raises(SampleError, match="the field is there twice"):
        read_sample(members(("a.jpg", b"1"), ("a.JPG", b"2")))
    with pytest.raises(ShardError, match="truncated"):
        read_sample(members(("a.jpg", b"1"))[:-1])
    with pytest.raises(ShardError, match="it is not a tar"):
        read_sample(members(("a.jpg", b"1")).replace(b"a.jpg", b"c.jpg"))
