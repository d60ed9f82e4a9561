"""The documented ``tenbin`` module: files, streams and ZeroMQ; SCTP is in tests/sctp/inside."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from shardfeed_wire.errors import ConfigError, TenbinError
from webdataset import tenbin

ARRAYS = [np.arange(6, dtype="f4").reshape(2, 3), np.zeros((0, 4), "i8"), np.array(7, "u1")]
NAMES = ["a", "b", "c"]


def assert_same(got: list[Any], expected: list[Any] = ARRAYS) -> None:
    """Compare shapes, dtypes and values."""
    assert [(array.shape, array.dtype) for array in got] == [(array.shape, array.dtype) for array in expected]
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_arrays_saved_are_loaded_equal_and_writable(tmp_path: Path) -> None:
    path = tmp_path / "a.ten"
    tenbin.save(path, *ARRAYS, infos=NAMES)
    assert path.read_bytes() == tenbin.encode_buffer(ARRAYS, NAMES)
    loaded, names = tenbin.load(str(path), infos=True)
    assert names == NAMES
    assert_same(loaded)
    assert all(array.flags.writeable for array in loaded)
    assert_same(tenbin.load(path, infos=NAMES))
    with pytest.raises(TenbinError, match=r"a\.ten: the arrays are named"):
        tenbin.load(path, infos=["a", "b", "x"])


def test_file_names_end_with_ten_unless_unchecked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nocheck=True"):
        tenbin.save(tmp_path / "a.bin", *ARRAYS)
    with pytest.raises(ValueError, match="nocheck=True"):
        tenbin.load(tmp_path / "a.bin")
    tenbin.save(tmp_path / "a.bin", *ARRAYS, nocheck=True)
    assert_same(tenbin.load(tmp_path / "a.bin", nocheck=True))


def test_saving_what_cannot_be_encoded_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TenbinError):
        tenbin.save(tmp_path / "a.ten", *ARRAYS, np.array([True]))
    assert list(tmp_path.iterdir()) == []


def test_streams_are_read_to_their_end_or_for_n_arrays() -> None:
    stream = io.BytesIO()
    tenbin.write(stream, ARRAYS, infos=NAMES)
    assert stream.getvalue() == tenbin.encode_buffer(ARRAYS, NAMES)
    stream.seek(0)
    assert_same(tenbin.read(stream, n=2), ARRAYS[:2])
    assert_same(tenbin.read(stream), ARRAYS[2:])
    assert tenbin.read(stream) == []


@pytest.mark.parametrize("cut", [1, 8, 15, 16, 60, 95, 96, 97])
def test_a_stream_that_ends_early_is_an_error(cut: int) -> None:
    with pytest.raises(TenbinError, match="ends"):
        tenbin.read(io.BytesIO(tenbin.encode_buffer(ARRAYS[:1])[:cut]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"nonsense" * 2, "no chunk starts here"),
        (b"~TenBin~" + struct.pack("<q", -5), "negative length -5"),
        (b"~TenBin~" + struct.pack("<q", 1 << 60) + bytes(100), "after 100 of 1152921504606846976 bytes"),
        (b"~TenBin~" + struct.pack("<q", 1) + b"x" * 64, "padding"),
    ],
)
def test_malformed_streams_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(TenbinError, match=message):
        tenbin.read(io.BytesIO(data))


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    """Connect two ZeroMQ sockets."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        yield one, other


def test_zmq_messages_of_one_part_and_of_many_come_back_equal(pair: tuple[Any, Any]) -> None:
    one, other = pair
    tenbin.zsend_single(one, ARRAYS, infos=NAMES)
    assert_same(tenbin.zrecv_single(other, infos=NAMES))
    tenbin.zsend_multipart(one, ARRAYS, infos=NAMES)
    got, names = tenbin.zrecv_multipart(other, infos=True)
    assert_same(got)
    assert names == NAMES
    tenbin.zsend_multipart(one, ARRAYS)
    assert len(other.recv_multipart()) == 2 * len(ARRAYS)
    one.send(b"nonsense")
    with pytest.raises(TenbinError):
        tenbin.zrecv_single(other)
