"""Fields decode by extension, and no field takes more than its bytes justify."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shardfeed_wire.errors import ConfigError, SampleError
from webdataset.decode import default_handlers, make_decoder, make_handlers

RGB = default_handlers["rgb"]


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """Write an array as .npy."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("extension", ["cls", "cls2", "class", "count", "index", "inx", "id"])
def test_integers_are_read_and_what_is_none_is_left(extension: str) -> None:
    assert RGB[extension](b"-12\n") == -12
    assert RGB[extension](b"cat") == b"cat"


@pytest.mark.parametrize("extension", ["txt", "text", "transcript"])
def test_texts_are_utf8(extension: str) -> None:
    assert RGB[extension]("grün".encode()) == "grün"


@pytest.mark.parametrize(
    "array", [np.arange(6).reshape(2, 3), np.asfortranarray(np.eye(3)), np.float32(1), np.zeros((0, 2))]
)
def test_npy_and_npz_come_back_equal(array: np.ndarray[Any, Any]) -> None:
    array = np.asarray(array)
    for got in (RGB["npy"](npy(array)), RGB["npz"](npz(a=array, b=array))["b"]):
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


@given(
    dtype=st.sampled_from(["<f4", ">f8", "|b1", "|i1", "<u2", ">i8", "<c16", "<U3", "|S4", "<M8[ns]", "|V5"]),
    shape=st.lists(st.integers(0, 3), max_size=4).map(tuple),
    order=st.sampled_from(["C", "F"]),
)
def test_any_npy_that_numpy_writes_is_read_as_numpy_reads_it(dtype: str, shape: tuple[int, ...], order: Any) -> None:
    written = npy(
        np.arange(np.prod(shape, dtype=int))
        .astype("u1")
        .repeat(np.dtype(dtype).itemsize)
        .view(dtype)
        .reshape(shape, order=order)
    )
    got, expected = RGB["npy"](written), np.load(io.BytesIO(written))
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.flags.c_contiguous == expected.flags.c_contiguous
    assert got.tobytes("A") == expected.tobytes("A")


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    """Write arrays as .npz."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def test_npy_with_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="pickled objects"):
        RGB["npy"](npy(np.array([{}])))


def test_an_npy_header_that_claims_terabytes_takes_no_memory() -> None:
    data = npy(np.zeros(3)).replace(b"(3,), }" + b" " * 15, b"(999999999999999,), }" + b" ")
    assert b"999999999999999" in data
    with pytest.raises(ValueError, match="reshape"):
        RGB["npy"](data)


def claiming(size: int, data: bytes) -> bytes:
    """Have the one member of a zip file say that it takes ``size`` bytes unpacked."""
    changed = bytearray(data)
    for place in (22, data.rindex(b"PK\1\2") + 24):
        struct.pack_into("<L", changed, place, size)
    return bytes(changed)


def test_an_npz_that_unpacks_to_gigabytes_takes_no_memory_whatever_it_says() -> None:
    with pytest.raises(ValueError, match=r"1,073,741,825 bytes unpacked, more than the 1,073,741,824"):
        RGB["npz"](claiming((1 << 30) + 1, npz(a=np.zeros(3))))
    small = claiming(1_000, npz(a=np.zeros(64 << 20, np.uint8)))
    assert len(small) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile, match="CRC"):
            RGB["npz"](small)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_pickles_are_in_no_table_unless_allowed() -> None:
    assert not {"pyd", "pickle", "pth"} & set(RGB)
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream)
    assert make_handlers("rgb", allow_pickle=True)["pth"](stream.getvalue())["a"].tolist() == [1, 1]


def test_a_field_that_does_not_decode_names_key_field_and_reason() -> None:
    decode = make_decoder("rgb8")
    assert decode is not None
    for field, data, reason in [
        ("png", b"nonsense", "a picture of 8 bytes does not decode"),
        ("txt", b"\xff", "UnicodeDecodeError"),
        ("json", b"{", "JSONDecodeError"),
        ("ten", b"x", "TenbinError"),
        ("a.npz", b"x", "BadZipFile"),
    ]:
        with pytest.raises(SampleError, match=f"sample k, field {field}: {reason}") as caught:
            decode({"__key__": "k", field: data})
        assert (caught.value.key, caught.value.field) == ("k", field)
        assert reason in caught.value.reason


def test_handlers_added_to_the_default_table_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(default_handlers["rgb"], "upper", lambda data: data.decode().upper())
    decode = make_decoder(True)
    assert decode is not None
    assert decode({"__key__": "k", "upper": b"a"}) == {"__key__": "k", "upper": "A"}


def test_what_is_not_bytes_is_not_decoded_again() -> None:
    decode = make_decoder(True)
    assert decode is not None
    assert decode({"__key__": "1", "cls": 5, "_cls": b"5"}) == {"__key__": "1", "cls": 5, "_cls": b"5"}
    assert decode((1, 2)) == (1, 2)


def test_no_decoder_leaves_samples_alone() -> None:
    assert make_decoder(False) is make_decoder(None) is None


def test_an_unknown_imagespec_makes_no_handlers() -> None:
    with pytest.raises(ConfigError, match="rgb9"):
        make_handlers("rgb9")
