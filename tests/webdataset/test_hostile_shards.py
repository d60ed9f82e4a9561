"""Shards cut off, with flipped bits, or made to hurt: iterating ends or raises, soon, in no more memory than theirs."""

from __future__ import annotations

import functools
import io
import tarfile
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardfeed_wire.errors import SampleError, ShardError, TenbinError
from shardfeed_wire.tenbin import encode_buffer
from tests.webdataset.tars import numbered_files, tar_bytes, write_tar
from webdataset import tenbin
from webdataset.dataset import WebDataset
from webdataset.samples import tariterator

# Reading takes windows of the stream, and decompressors have theirs, whatever the shard's size is.
ALLOWANCE = 3 << 20
DICTIONARY = {"xz": 8 << 20, "bz2": 4 << 20}


@functools.cache
def shards() -> dict[str, bytes]:
    """Shards with every kind of header that says how much is to be read."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in [("n" * 150 + ".bin", bytes(3000)), ("ü.txt", b"text"), ("b.cls", b"1")]:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5
            archive.addfile(info, io.BytesIO(content))
    files = [("k" * 90 + ".x", b"long"), *numbered_files(range(4), size=90)]
    return {
        "ustar": tar_bytes(numbered_files(range(6), size=90)),
        "gnu": tar_bytes([("k" * 120 + ".x", b"long"), *files], tarfile.GNU_FORMAT),
        "pax": stream.getvalue(),
        "gz": tar_bytes(files, mode="w:gz"),
        "bz2": tar_bytes(files, mode="w:bz2"),
        "xz": tar_bytes(files, mode="w:xz"),
    }


def spoil(data: bytes, cut: int, flips: list[tuple[int, int]]) -> bytes:
    """Cut a shard off, and flip bits of what is left."""
    spoiled = bytearray(data[: cut % (len(data) + 1)] if cut else data)
    for where, bit in flips:
        if spoiled:
            spoiled[where % len(spoiled)] ^= 1 << bit
    return bytes(spoiled)


@settings(max_examples=250)
@given(
    kind=st.sampled_from(sorted(shards())),
    cut=st.integers(0, 20_000),
    flips=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 7)), max_size=3),
    errors=st.sampled_from([True, False, "warn"]),
)
def test_a_spoiled_shard_raises_or_ends_within_its_own_memory(
    kind: str, cut: int, flips: list[tuple[int, int]], errors: Any
) -> None:
    data = spoil(shards()[kind], cut, flips)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                for sample in tariterator(io.BytesIO(data), decoder=False, errors=errors):
                    assert "__key__" in sample
            except (ShardError, SampleError):
                assert errors is True
        assert tracemalloc.get_traced_memory()[1] < len(data) + ALLOWANCE + DICTIONARY.get(kind, 0)
    finally:
        tracemalloc.stop()


def test_every_single_flipped_bit_of_the_headers_raises_or_ends() -> None:
    data = shards()["pax"]
    for where in range(1536):  # a pax header, its records, and the header that they are for
        for bit in range(8):
            try:
                list(tariterator(io.BytesIO(spoil(data, 0, [(where, bit)])), decoder=False))
            except (ShardError, SampleError):
                continue


def test_a_dataset_goes_on_after_a_spoiled_shard(tmp_path: Path) -> None:
    good = write_tar(tmp_path / "good.tar", [("good.x", b"1")])
    bad = tmp_path / "bad.tar"
    for cut in range(1, 9000, 700):
        bad.write_bytes(spoil(shards()["ustar"], cut, [(300, 2)]))
        keys = [sample["__key__"] for sample in WebDataset([str(bad), good], decoder=False, errors=False)]
        assert keys[-1] == "good"


@pytest.mark.parametrize("claimed", [1 << 33, (1 << 63) - 1])
def test_a_size_that_the_shard_has_not_got_takes_no_memory(claimed: int) -> None:
    info = tarfile.TarInfo("k.bin")
    info.size = claimed
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(100_000)
    tracemalloc.start()
    try:
        with pytest.raises(ShardError, match="truncated"):
            list(tariterator(io.BytesIO(data), decoder=False))
        assert tracemalloc.get_traced_memory()[1] < ALLOWANCE
    finally:
        tracemalloc.stop()


class Endless(io.RawIOBase):
    """A stream that never ends, as a device or a broken server may be."""

    def __init__(self, piece: bytes) -> None:
        super().__init__()
        self.piece, self.given = piece, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = (self.piece * (len(buffer) // len(self.piece) + 1))[: len(buffer)]
        buffer[:] = part
        self.given += len(part)
        assert self.given < 64 << 20, "it reads on and on"
        return len(part)


@pytest.mark.parametrize("piece", [bytes(512), b"x", b"\x1f\x8b\x08\x00"])
def test_a_stream_without_end_that_is_no_shard_is_left(piece: bytes, tmp_path: Path) -> None:
    for errors in (True, False):
        try:
            assert list(WebDataset(["endless"], opener=lambda url: Endless(piece), errors=errors)) == []
        except ShardError:
            assert errors


@settings(max_examples=200)
@given(st.integers(1, 2000), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 7)), max_size=2))
def test_a_spoiled_ten_file_is_read_or_refused(cut: int, flips: list[tuple[int, int]]) -> None:
    data = spoil(encode_buffer([[1.5, 2.0], [[1, 2], [3, 4]]], ["a", "b"]), cut, flips)
    for read in (tenbin.decode_buffer, lambda data: tenbin.read(io.BytesIO(data))):
        try:
            arrays = read(data)
        except TenbinError:
            continue
        assert sum(array.nbytes for array in arrays) <= len(data)
