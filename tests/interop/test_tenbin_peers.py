"""Files and messages pass both ways between this tenbin and those of Tensorcom and of PyPI's webdataset.

``tensorcom.tenbin`` 0.1.0, of 2019, still imports: its package needs pyzmq and braceexpand, and runs no more of
PyTorch or webdataset than that. Neither peer knows uint32, which both spell "unit32" in their tables of dtypes;
and both write 0-d arrays, but cannot read them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from tests.interop.environments import run
from webdataset import tenbin

pytestmark = [pytest.mark.peers, pytest.mark.timeout(240)]

MODULES = ["tensorcom.tenbin", "webdataset.tenbin"]
PROGRAMS = Path(__file__).parent / "programs"
CODES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u8"]
SHAPES = [(1,), (0,), (7,), (64,), (3, 5), (0, 4), (2, 0, 3), (2, 3, 4, 5), (1,) * 9]
Arrays = list[np.ndarray[Any, np.dtype[Any]]]


def array(code: str, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, np.dtype[Any]]:
    """Make an array of arbitrary bits, so that NaNs, infinities and the largest integers are among them."""
    size = int(np.prod(shape))
    return np.frombuffer(np.random.default_rng(seed).bytes(size * int(code[1])), code, count=size).reshape(shape)


def assert_same(got: Arrays, expected: Arrays) -> None:
    """Compare dtypes, shapes and bits."""
    assert [(one.dtype, one.shape) for one in got] == [(one.dtype, one.shape) for one in expected]
    for one, other in zip(got, expected, strict=True):
        assert one.tobytes() == other.tobytes()


def lists() -> dict[str, tuple[Arrays, list[str]]]:
    """Every dtype in every shape; several arrays in a list; none; and names of every length."""
    made: dict[str, tuple[Arrays, list[str]]] = {"none": ([], [])}
    for code in CODES:
        arrays = [array(code, shape, number) for number, shape in enumerate(SHAPES)]
        made[code] = arrays, ["abcdefgh"[:number] for number in range(len(SHAPES))]
    made["mixed"] = [array(code, (2, 3), 5) for code in CODES], [""] * len(CODES)
    made["views"] = [array("f4", (6, 8), 1)[::2, 1:].T, array("i4", (4,), 2).astype(">i4")], ["view", "big"]
    return made


@pytest.mark.parametrize("module", MODULES)
def test_files_and_buffers_of_either_are_read_by_the_other_and_are_byte_for_byte_equal(
    peer: Path, module: str, tmp_path: Path
) -> None:
    for name, (arrays, infos) in lists().items():
        tenbin.save(tmp_path / f"{name}.ten", *arrays, infos=infos)
    known = run(peer, PROGRAMS / "tenbin_files.py", module, tmp_path)
    assert known.split() == CODES
    for name, (arrays, infos) in lists().items():
        with np.load(tmp_path / f"{name}.npz") as read:
            assert list(read) == [f"{number}:{info}" for number, info in enumerate(infos)]
            # Both peers give numpy what they read as it is, so ours is little-endian and contiguous to them.
            assert_same([read[key] for key in read], [one.astype(one.dtype.newbyteorder("<")) for one in arrays])
        mine = (tmp_path / f"{name}.ten").read_bytes()
        assert (tmp_path / f"{name}.again").read_bytes() == mine
        assert (tmp_path / f"{name}.buffer").read_bytes() == mine
        got, names = tenbin.load(tmp_path / f"{name}.again", infos=True, nocheck=True)
        assert names == infos
        assert_same(got, [one.astype(one.dtype.newbyteorder("<")) for one in arrays])


@pytest.mark.parametrize("module", MODULES)
def test_0d_arrays_are_written_alike_and_read_by_us(peer: Path, module: str, tmp_path: Path) -> None:
    run(peer, PROGRAMS / "tenbin_scalars.py", module, tmp_path / "scalars")
    written = (tmp_path / "scalars").read_bytes()
    arrays = [np.array(7, "u1"), np.array(-1.5, "f8")]
    assert written == tenbin.encode_buffer(arrays, ["a", ""])
    assert_same(tenbin.decode_buffer(written), arrays)


@pytest.mark.parametrize("framing", ["single", "multipart"])
def test_zmq_messages_pass_both_ways_with_tensorcom(peer: Path, framing: str) -> None:
    send, receive = getattr(tenbin, f"zsend_{framing}"), getattr(tenbin, f"zrecv_{framing}")
    messages = [message for name, message in lists().items() if name != "none"]  # no parts are no multipart message
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.linger, socket.rcvtimeo = 0, 30_000
        endpoint = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        program = [peer, "-I", PROGRAMS / "tenbin_zmq.py", "tensorcom.tenbin", endpoint, framing, len(messages)]
        with subprocess.Popen([*map(str, program)], cwd="/") as process:
            try:
                for arrays, infos in messages:
                    send(socket, arrays, infos=infos)
                    got, names = receive(socket, infos=True)
                    assert names == infos
                    assert_same(got, [one.astype(one.dtype.newbyteorder("<")) for one in arrays])
                socket.send(b"")
                assert process.wait(30) == 0
            finally:
                process.kill()
