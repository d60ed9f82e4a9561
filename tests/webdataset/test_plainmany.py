"""Many samples taken apart at once are what each gives alone, or are left to the way that takes them one by one."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.webdataset.tars import tar_bytes
from webdataset.keys import base_plus_ext
from webdataset.plainmany import plain_samples
from webdataset.plainsample import read_plain_sample

names = st.text("aA_./é\udcff", min_size=1, max_size=5)
# Mostly alike, so that not all are left to others.
alike = st.lists(st.tuples(names, st.integers(0, 600), st.integers(0, 3)), min_size=1, max_size=5).map(
    lambda drawn: [[(f"{key}.txt", b"t" * size), (f"{key}.A.cls", b"7" * digits)] for key, size, digits in drawn]
)
mixed = st.lists(st.lists(st.tuples(names, st.binary(max_size=600)), min_size=1, max_size=3), min_size=1, max_size=3)


def cut(data: bytes) -> bytes:
    """Leave out what tarfile puts behind the last member."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        last = archive.getmembers()[-1]
        return data[: last.offset_data + last.size + -last.size % 512]


def laid(samples: list[bytes]) -> tuple[bytes, np.ndarray]:
    """Lay samples side by side."""
    return b"".join(samples), np.cumsum([0, *map(len, samples)], dtype=np.int64)


def packed(*members: tuple[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """Make one sample's bytes."""
    return cut(tar_bytes(members, tar_format))


@given(st.one_of(alike, mixed), st.sampled_from([["txt", "a.cls"], ["txt"], ["a"]]))
@example([[("k.txt", b"1"), ("k.A.cls", b"")], [("a/k.txt", b""), ("a/k.A.cls", b"22")]], ["txt", "a.cls"])
def test_what_it_reads_is_what_each_sample_gives_alone(
    samples: list[list[tuple[str, bytes]]], suffixes: list[str]
) -> None:
    each = [packed(*members, tar_format=tarfile.GNU_FORMAT) for members in samples]
    found = plain_samples(*laid(each), suffixes)
    if found is not None:
        alone = [read_plain_sample(data, base_plus_ext, suffixes) for data in each]
        keys, fields = found
        columns = dict(zip(suffixes, fields, strict=True))
        assert alone == [
            {"__key__": key, **{suffix: column[row] for suffix, column in columns.items()}}
            for row, key in enumerate(keys)
        ]


def test_samples_that_are_alike_are_read_whatever_their_sizes() -> None:
    samples = [
        packed((f"d.d/é{n}.txt", b"t" * n), (f"d.d/é{n}.Cls", b"%d" % n), (f"d.d/é{n}.x", b"")) for n in range(600)
    ]
    expected = [f"d.d/é{n}" for n in range(600)], [[b"%d" % n for n in range(600)], [b"t" * n for n in range(600)]]
    assert plain_samples(*laid(samples), ["cls", "txt"]) == expected


@pytest.mark.parametrize(
    "odd",
    {
        "other members": packed(("b.txt", b"2")),
        "more members": packed(("b.txt", b"2"), ("b.cls", b"2"), ("b.x", b"")),
        "another order": packed(("b.cls", b"2"), ("b.txt", b"2")),
        "two keys": packed(("b.txt", b"2"), ("c.cls", b"2")),
        "twice": packed(("b.txt", b"2"), ("b.txt", b"2")),
        "meta": packed(("__b__.txt", b"2"), ("__b__.cls", b"2")),
        "no field": packed(("b", b"2"), ("b.cls", b"2")),
        "prefix": packed(("b" * 90 + "/" + "c" * 90 + ".txt", b"2"), ("b" * 90 + "/" + "c" * 90 + ".cls", b"2")),
        "long": packed(("b" * 200 + ".txt", b"2"), ("b" * 200 + ".cls", b"2"), tar_format=tarfile.GNU_FORMAT),
        "checksum": packed(("b.txt", b"2"), ("b.cls", b"2")).replace(b"b.cls", b"c.cls"),
        "size": packed(("b.txt", b"2"), ("b.cls", b"2")).replace(b"00000000001\0", b"00000002001\0"),
        "cut": packed(("b.txt", b"2"), ("b.cls", b"2"))[:-1],
        "cut at a block": packed(("b.txt", b"2"), ("b.cls", b"2"))[:-512],
        "nothing": b"",
        "end": bytes(1024),
    }.items(),
    ids=lambda odd: odd[0],
)
def test_one_sample_that_is_not_like_the_others_leaves_all_to_others(odd: tuple[str, bytes]) -> None:
    first = packed(("a.txt", b"1"), ("a.cls", b"1"))
    assert plain_samples(*laid([first, first]), ["cls"]) == (["a", "a"], [[b"1", b"1"]])
    assert plain_samples(*laid([first, odd[1]]), ["cls"]) is None
    assert plain_samples(*laid([odd[1], first]), ["cls"]) is None


def test_samples_with_a_time_in_front_of_each_member_are_read_where_all_have_one() -> None:
    def timed(key: str, time: float) -> bytes:
        members = [(f"{key}.txt", key.encode()), (f"{key}.cls", b"7")]
        return cut(tar_bytes(members, tarfile.PAX_FORMAT, time=time))

    samples = [timed("a", 1.5), timed("b", 1795545698.838175), timed("c", 22.25)]
    assert plain_samples(*laid(samples), ["txt"]) == (["a", "b", "c"], [[b"a", b"b", b"c"]])
    for odd in (timed("d", 0), samples[0][:512], samples[0][:1024], samples[0].replace(b" mtime", b" atime")):
        assert plain_samples(*laid([*samples, odd]), ["txt"]) is None
        assert plain_samples(*laid([odd, *samples]), ["txt"]) is None


def test_every_changed_bit_of_a_header_is_noticed() -> None:
    first = packed(("a.txt", b"1"), ("a.cls", b"1"))
    for place in range(512):
        for bit in range(8):
            broken = bytearray(first)
            broken[place] ^= 1 << bit
            # The last byte of the checksum is a space that nobody looks at.
            assert plain_samples(*laid([bytes(broken), first]), ["cls"]) is None or place == 155, (place, bit)
