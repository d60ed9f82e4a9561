"""The codec: what goes in comes out equal, the bytes are as documented, and nothing malformed gets through."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import zmq
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shardfeed_wire.errors import TenbinError
from shardfeed_wire.tenbin import (
    decode_buffer,
    decode_chunks,
    decode_list,
    encode_buffer,
    encode_chunks,
    encode_list,
)

CODES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]

dtypes = st.sampled_from([order + code for code in CODES for order in "<>"]).map(np.dtype)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
any_arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes))
any_names = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=8)


def header_bytes(code: bytes, name: bytes, ndim: int, *dims: int) -> bytes:
    """Write a header chunk by the letter of the format, independently of the codec."""
    return code.ljust(8, b"\0") + name.ljust(8, b"\0") + struct.pack(f"<q{len(dims)}q", ndim, *dims)


def framed(chunk: bytes) -> bytes:
    """Write a framed chunk by the letter of the format."""
    return b"~TenBin~" + struct.pack("<q", len(chunk)) + chunk + b"\0" * (-len(chunk) % 64)


def assert_same(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Compare shape, kind of dtype and bytes (so that NaNs count as equal)."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype.newbyteorder("<")
    assert got.tobytes() == expected.astype(expected.dtype.newbyteorder("<")).tobytes()


def test_a_known_array_is_written_byte_for_byte_as_the_format_says() -> None:
    array = np.array([[1, 2, 3], [4, 5, 6]], dtype="<i2")
    expected = (
        b"~TenBin~\x28\0\0\0\0\0\0\0"  # 40 bytes follow
        b"i2\0\0\0\0\0\0"
        b"label\0\0\0"
        b"\x02\0\0\0\0\0\0\0"
        b"\x02\0\0\0\0\0\0\0"
        b"\x03\0\0\0\0\0\0\0" + b"\0" * 24 + b"~TenBin~\x0c\0\0\0\0\0\0\0"
        b"\x01\0\x02\0\x03\0\x04\0\x05\0\x06\0" + b"\0" * 52
    )
    assert encode_buffer([array], infos=["label"]) == expected
    arrays, names = decode_buffer(expected, infos=True)
    assert names == ["label"]
    assert_same(arrays[0], array)


@given(st.lists(st.tuples(any_arrays, any_names), max_size=4))
def test_arrays_of_any_shape_dtype_and_byte_order_come_back_equal(
    items: list[tuple[np.ndarray[Any, Any], str]],
) -> None:
    arrays = [array for array, _ in items]
    names = [name for _, name in items]
    for decoded, infos in (
        decode_list(encode_list(arrays, names), infos=True),
        decode_buffer(encode_buffer(arrays, names), infos=True),
    ):
        assert infos == names
        for got, expected in zip(decoded, arrays, strict=True):
            assert_same(got, expected)


@pytest.mark.parametrize("code", CODES)
def test_every_dtype_has_its_documented_code(code: str) -> None:
    array = np.arange(3).astype(code)
    assert bytes(encode_list([array])[0]) == header_bytes(code.encode(), b"", 1, 3)


def test_views_that_are_not_contiguous_come_back_equal() -> None:
    base = np.arange(24, dtype="f4").reshape(4, 6)
    views = [base.T, base[::2, ::-1], np.asfortranarray(base), np.broadcast_to(base[0], (3, 6))]
    for got, expected in zip(decode_buffer(encode_buffer(views)), views, strict=True):
        assert_same(got, expected)


def test_torch_tensors_come_back_equal() -> None:
    tensors = [torch.arange(6.0, requires_grad=True).reshape(2, 3), torch.tensor(7), torch.zeros(0, 4).t()]
    for got, expected in zip(decode_list(encode_list(tensors)), tensors, strict=True):
        assert torch.equal(torch.from_numpy(got.copy()), expected)


def test_encoding_a_list_copies_no_contiguous_array_and_decoding_copies_none() -> None:
    array = np.zeros((100, 100), dtype="f4")
    chunks = encode_list([array])
    (decoded,) = decode_list(chunks)
    assert np.shares_memory(np.frombuffer(chunks[1], dtype="u1"), array)
    assert np.shares_memory(decoded, array)
    buffer = bytearray(encode_buffer([array]))
    (decoded,) = decode_buffer(buffer)
    assert np.shares_memory(decoded, np.frombuffer(buffer, dtype="u1"))
    assert decoded.flags.writeable


def test_frames_and_views_of_any_kind_are_decoded() -> None:
    array = np.arange(5, dtype="i8")
    chunks = encode_list([array])
    for wrap in (bytes, bytearray, memoryview, zmq.Frame):
        assert_same(decode_list([wrap(chunk) for chunk in chunks])[0], array)
    typed = memoryview(np.frombuffer(encode_buffer([array]), dtype="i8"))
    assert_same(decode_buffer(typed)[0], array)


def test_infos_false_true_and_a_list_do_as_documented() -> None:
    buffer = encode_buffer([np.zeros(1), np.ones(1)], infos=["a", "b"])
    assert len(decode_buffer(buffer)) == 2
    assert decode_buffer(buffer, infos=True)[1] == ["a", "b"]
    assert len(decode_buffer(buffer, infos=["a", "b"])) == 2
    with pytest.raises(TenbinError, match=r"\['a', 'b'\].*\['a', 'c'\]"):
        decode_buffer(buffer, infos=["a", "c"])
    with pytest.raises(TenbinError):
        decode_buffer(buffer, infos=["a"])


def test_without_infos_names_are_empty() -> None:
    assert decode_buffer(encode_buffer([np.zeros(1)]), infos=True)[1] == [""]


@pytest.mark.parametrize("name", ["ninebytes", "ä", "a\0b"])
def test_a_name_that_does_not_fit_is_an_error_at_encoding(name: str) -> None:
    with pytest.raises(TenbinError, match="8 ASCII"):
        encode_list([np.zeros(1)], infos=[name])


def test_names_and_arrays_must_be_equally_many_at_encoding() -> None:
    with pytest.raises(TenbinError, match="2 names for 1 arrays"):
        encode_list([np.zeros(1)], infos=["a", "b"])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, dtype=bool),
        np.zeros(2, dtype=complex),
        np.array([object()]),
        np.array(["text"]),
        np.zeros(2, dtype="datetime64[s]"),
        np.zeros(2, dtype=[("a", "f4")]),
        torch.zeros(2, dtype=torch.bool),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2, 2).to_sparse(),
    ],
)
def test_a_dtype_or_layout_without_a_code_is_an_error_at_encoding(array: object) -> None:
    with pytest.raises(TenbinError, match="array 0"):
        encode_list([array])


GOOD_HEADER = header_bytes(b"u1", b"x", 1, 4)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"", b"1234", "its header has 0 bytes"),
        (GOOD_HEADER[:-1], b"1234", "its header has 31 bytes"),
        (GOOD_HEADER + b"\0" * 8, b"1234", "says 1 dims and holds 2"),
        (header_bytes(b"u1", b"x", 0, 4), b"1234", "says 0 dims and holds 1"),
        (header_bytes(b"u1", b"x", -1, 4), b"1234", "says -1 dims"),
        (header_bytes(b"u1", b"x", 2**62, 4), b"1234", "says 4611686018427387904 dims"),
        (header_bytes(b"u1", b"x", 65, *[1] * 65), b"1", "at most 64 dims"),
        (header_bytes(b"u3", b"x", 1, 4), b"1234", "unknown"),
        (header_bytes(b"b1", b"x", 1, 4), b"1234", "unknown"),
        (header_bytes(b"\0u1", b"x", 1, 4), b"1234", "unknown"),
        (header_bytes(b"u1\0x", b"x", 1, 4), b"1234", "unknown"),
        (header_bytes(b"u1", b"\xc3\xa4", 1, 4), b"1234", "ASCII"),
        (header_bytes(b"u1", b"a\0b", 1, 4), b"1234", "ASCII"),
        (header_bytes(b"u1", b"x", 1, -4), b"1234", "negative"),
        (header_bytes(b"u1", b"x", 2, -2, -2), b"1234", "negative"),
        (header_bytes(b"u1", b"x", 2, -1, 0), b"", "negative"),
        (GOOD_HEADER, b"123", "needs 4 bytes, but its data chunk has 3"),
        (GOOD_HEADER, b"12345", "needs 4 bytes, but its data chunk has 5"),
        (header_bytes(b"u1", b"x", 2, 2**32, 2**32), b"", "needs 18446744073709551616 bytes"),
        (header_bytes(b"u1", b"x", 3, 2**32, 2**30, 4), b"", "needs"),
        (header_bytes(b"f8", b"x", 2, 0, 2**62), b"", "more than numpy can hold"),
        (header_bytes(b"u8", b"x", 1, 2**61), b"", "needs"),
    ],
)
def test_a_malformed_array_is_refused_with_its_fault_named(header: bytes, data: bytes, message: str) -> None:
    for decode in (
        lambda: decode_list([header, data]),
        lambda: decode_buffer(framed(header) + framed(data)),
    ):
        with pytest.raises(TenbinError, match=message):
            decode()


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (b"~", "too few"),
        (framed(GOOD_HEADER) + framed(b"1234") + b"\0", "too few"),
        (framed(GOOD_HEADER) + framed(b"1234") + b"\0" * 64, "no chunk starts at byte 160"),
        (b"~tenbin~" + framed(GOOD_HEADER)[8:], "no chunk starts at byte 0"),
        (b"~TenBin~" + struct.pack("<q", -1), "negative length"),
        (b"~TenBin~" + struct.pack("<q", 2**62), "the buffer ends at byte 16"),
        (b"~TenBin~" + struct.pack("<q", 1), "the buffer ends at byte 16"),
        (framed(GOOD_HEADER)[:-1], "the buffer ends"),
        (framed(GOOD_HEADER)[:-1] + b"x", "padding at byte 48 is not zero"),
        (framed(GOOD_HEADER), "1 chunks are not pairs"),
    ],
)
def test_a_malformed_buffer_is_refused_with_its_fault_named(buffer: bytes, message: str) -> None:
    with pytest.raises(TenbinError, match=message):
        decode_buffer(buffer)


def test_a_chunk_that_is_not_bytes_is_refused() -> None:
    with pytest.raises(TenbinError, match="contiguous bytes, not str"):
        decode_list([GOOD_HEADER, "1234"])  # type: ignore[list-item]
    with pytest.raises(TenbinError, match="contiguous"):
        decode_list([GOOD_HEADER, memoryview(b"12345678")[::2]])


def test_a_claim_of_exabytes_takes_no_memory() -> None:
    hostile = framed(header_bytes(b"f8", b"", 1, 2**57)) + b"~TenBin~" + struct.pack("<q", 2**60)
    tracemalloc.start()
    try:
        with pytest.raises(TenbinError):
            decode_buffer(hostile)
        with pytest.raises(TenbinError):
            decode_list([header_bytes(b"f8", b"", 1, 2**57), b""])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300))
def test_arbitrary_bytes_decode_or_raise_tenbin_errors_only(noise: bytes) -> None:
    for decode in (
        lambda: decode_buffer(noise),
        lambda: decode_list([noise, noise]),
        lambda: decode_buffer(framed(noise) + framed(noise)),
    ):
        with contextlib.suppress(TenbinError):
            decode()


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_flipped_byte_never_gives_more_than_a_tenbin_error(where: int, value: int) -> None:
    buffer = bytearray(encode_buffer([np.arange(10, dtype="i4"), np.ones((2, 0), "f8")], infos=["a", "b"]))
    buffer[where % len(buffer)] = value
    try:
        arrays = decode_buffer(buffer)
    except TenbinError:
        return
    assert sum(array.nbytes for array in arrays) <= len(buffer)


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_chunks_of_any_length_come_back_equal_and_each_is_padded_to_64(chunks: list[bytes]) -> None:
    buffer = encode_chunks(chunks)
    assert buffer == b"".join(framed(chunk) for chunk in chunks)
    assert [bytes(chunk) for chunk in decode_chunks(buffer)] == chunks
