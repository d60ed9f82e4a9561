"""The short way through a sample's bytes gives what the walk over a tar gives, or leaves the sample to it."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfeed_wire.errors import SampleError, ShardError
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
